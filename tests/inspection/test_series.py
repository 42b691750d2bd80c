"""The values of time series."""

from pipeline.inspection.inspection import inspect
from tests.inspection.faulty import config_of


def test_series(tmp_path):
    steps = [f"{n},{n * 0.5},1,{'' if n in (3, 4, 9) else n}" for n in range(12)]
    steps[7] = "7,many,1,7"
    steps[10] = "3,5,1,10"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.csv").write_text("\n".join(["time,load,flat,gaps", *steps, ""]))
    [train] = inspect(
        config_of(
            str(tmp_path / "data"),
            "forecasting",
            data={"validation": None},
            forecasting={"series": ["load", "flat", "gaps"], "time": "time"},
            model={"context_length": 4, "prediction_length": 2, "patch_length": 2, "patch_stride": 2},
        )
    ).series
    assert train.windows == 7 and train.disorder and "3" in train.disorder and "not later" in train.disorder
    load, flat, gaps = train.series.values()
    assert load.not_numbers.count == load.missing == 1 and (load.minimum, load.maximum) == (0, 5.5)
    assert flat.is_constant and flat.mean == 1
    assert (gaps.missing, gaps.longest_gap) == (3, 2) and not gaps.is_constant
