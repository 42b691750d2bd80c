"""Forecasting as a task: windows of series, scores in both units, errors that name row and series."""

from contextlib import nullcontext
from datetime import date, datetime

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from pipeline import cli
from pipeline.errors import ConfigError, DataError
from pipeline.inference.evaluation import evaluate
from pipeline.inference.generation import generate
from pipeline.models.configuration_forecaster import TransformerForecasterConfig
from pipeline.models.modeling_forecaster import TransformerForecaster
from pipeline.run import RunFolder, train
from pipeline.tasks.config_loading import parse_config
from pipeline.tasks.forecasting import Forecasting
from pipeline.tasks.trained_model import load_trained

SMALL = {
    **{"context_length": 12, "prediction_length": 4, "patch_length": 4, "patch_stride": 2},
    **{"d_model": 16, "encoder_layers": 1, "attention_heads": 2, "ffn_dim": 16},
}


def make_config(time=None, **data):
    return parse_config(
        {"task": "forecasting", "data": {"path": "x", **data}, "forecasting": {"series": ["load"], "time": time}}
    )


def test_a_forecast_has_no_probability(finished, tmp_path, capsys):
    assert cli.main(["score", str(finished("forecasting").output_dir), "--per-row", str(tmp_path / "rows")]) == 2
    assert "error: --per-row: a model for forecasting gives no probability" in capsys.readouterr().err
    assert not (tmp_path / "rows").exists()


def test_forecasting(finished):
    folder = finished("forecasting").output_dir
    scores = RunFolder(folder).read_scores()["test"]
    assert (folder / "forecasts.png").read_bytes().startswith(b"\x89PNG")
    model = AutoModel.from_pretrained(folder)
    steps = np.arange(120)
    values = np.stack([np.sin(steps / 3) * 5 + 20, np.cos(steps / 5)], 1)
    means, stds = values[:80].mean(0), values[:80].std(0)
    assert model.config.means == pytest.approx(means) and model.config.stds == pytest.approx(stds)
    windows = np.stack([values[start : start + 16] for start in range(88, 105)])  # every one of the test split
    past, future = torch.tensor(windows[:, :12]).float(), windows[:, 12:]
    with torch.no_grad():
        errors = model(past_values=past).prediction_outputs.numpy() - future
    assert scores["mse"] == pytest.approx(((errors / stds) ** 2).mean(), rel=1e-4)
    assert scores["mae"] == pytest.approx(abs(errors / stds).mean(), rel=1e-4)
    assert scores["mse_original"] == pytest.approx((errors**2).mean(), rel=1e-4)
    assert scores["mae_original"] == pytest.approx(abs(errors).mean(), rel=1e-4)
    repeated = (windows[:, 11:12] - future) / stds
    assert scores["repeat_last_mse"] == pytest.approx((repeated**2).mean(), rel=1e-4)
    assert scores["repeat_last_mae"] == pytest.approx(abs(repeated).mean(), rel=1e-4)
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: time-series-forecasting" in card and "forecasts.png" in card
    own, task = load_trained(folder)
    with pytest.raises(ConfigError, match="takes no texts"):
        generate(own, task, ["1 2 3"])


@pytest.mark.parametrize(
    "changes, error, problem",
    [
        ({"train": "train[:10]"}, DataError, "a split has 10 rows, where one window needs 16"),
        ({"validation": "train[90:100]"}, DataError, "a split has 10 rows"),
        ({"series": ["HUFL", "TO"]}, DataError, "there is no column 'TO'; choose from date, HUFL, OT, load"),
        ({"series": ["date"]}, DataError, "forecasting.series: date is 't0' in row 0 of the split, not a number"),
        ({"series": None}, ConfigError, r"forecasting.series: Input should be a valid list"),
        ({"series": []}, ConfigError, r"forecasting.series: List should have at least 1 item"),
    ],
)
def test_series_that_cannot_be_used(make_task, changes, error, problem):
    section = "forecasting" if "series" in changes else "data"
    with pytest.raises(error, match=problem):
        train(make_task("forecasting", **{section: changes}))


def test_the_card_says_where_repeating_is_better():
    def scores(mse, mae):
        return {"loss": mse, "mse": mse, "mae": mae, "repeat_last_mse": 0.5, "repeat_last_mae": 0.6}

    assert Forecasting.remarks({"validation": scores(0.4, 0.6), "training": {"skipped_rows": 0}}) == []
    remarks = Forecasting.remarks({"validation": scores(0.4, 0.6), "test": scores(0.75, 0.5)})
    assert remarks == [
        "On test, this model is worse than repeating the last known value: its MSE is 0.7500, that of repeating is "
        "0.5000."
    ]
    assert len(Forecasting.remarks({"test": scores(float("nan"), 0.7)})) == 2
    assert Forecasting.remarks({"validation": scores(0.5, 0.6), "test": scores(0.5, 0.6)}) == [
        "This model repeats the last known value: validation did not show that it can forecast better."
    ]


def windows_that_gain(gains: np.ndarray) -> list[dict[str, float]]:
    return [{"items": 4, "mse": 10.0 - gain, "repeat_last_mse": 10.0} for gain in gains]


@pytest.mark.parametrize(
    "level, gains, settled",
    [
        ("last", np.full(60, 0.5), False),  # clearly better
        ("last", np.full(60, -0.5), True),  # worse
        ("last", np.r_[np.full(30, 4.0), np.full(30, -3.9)], True),  # better by luck
        ("last", np.full(60, np.nan), False),  # diverged: for the run to report
        ("last", np.ones(1), False),  # one window says nothing
        ("mean", np.full(60, -0.5), False),  # cannot repeat the last value
    ],
)
def test_the_last_value_is_repeated_unless_changes_are_clearly_better(level, gains, settled, caplog):
    model = TransformerForecaster(TransformerForecasterConfig(**SMALL, level=level))
    torch.nn.init.ones_(model.head.weight)
    assert Forecasting.from_model(None, model.config).settle(model, windows_that_gain(gains)) is settled
    assert bool(model.head.weight.any()) is not settled
    assert ("the model will repeat the last value" in caplog.text) is settled


def walk_config(folder, steps: int, level: str, max_steps: int, seed: int = 0):
    """Make the config of a run on three random walks."""
    walks = np.random.default_rng(seed).standard_normal((steps, 3)).cumsum(0)
    np.savetxt(folder / "walks.csv", walks, delimiter=",", header="a,b,c", comments="")
    data = {"path": str(folder / "walks.csv")}
    data |= {"train": "train[:70%]", "validation": "train[70%:85%]", "test": "train[85%:]"}
    training = {"output_dir": str(folder / "run"), "learning_rate": 1e-3, "max_steps": max_steps, "disable_tqdm": True}
    training |= {"per_device_train_batch_size": 32, "eval_strategy": "steps", "eval_steps": max_steps // 2}
    training |= {"save_steps": max_steps // 2, "load_best_model_at_end": True, "metric_for_best_model": "mse"}
    return parse_config(
        {
            **{"task": "forecasting", "forecasting": {"series": ["a", "b", "c"]}, "data": data, "training": training},
            "model": {**SMALL, "context_length": 24, "prediction_length": 12, "level": level},
        }
    )


def test_a_random_walk_is_forecast_as_well_as_by_repeating(tmp_path):
    result = train(walk_config(tmp_path, 600, "last", 20))
    for split in ("validation", "test"):
        scores = result.scores[split]
        assert scores["mse"] <= scores["repeat_last_mse"] and scores["mae"] <= scores["repeat_last_mae"]
    assert "This model repeats the last known value" in (result.output_dir / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_random_walks_are_forecast_as_well_as_by_repeating(tmp_path, seed):
    scores = train(walk_config(tmp_path, 3000, "last", 300, seed)).scores["test"]
    assert scores["mse"] <= scores["repeat_last_mse"]


@pytest.mark.slow
def test_what_is_no_random_walk_is_learned_from_the_last_value(tmp_path):
    config = walk_config(tmp_path, 1200, "last", 200)
    wave = np.sin(np.arange(1200)[:, None] / (3, 4, 5))
    np.savetxt(tmp_path / "walks.csv", wave, delimiter=",", header="a,b,c", comments="")
    scores = train(config).scores["test"]
    assert scores["mse"] < scores["repeat_last_mse"] / 10


@pytest.mark.parametrize("offset", [0, 1e8])
def test_a_level_does_not_change_the_scores(offset):
    """A small wave on a level of 1e8 is lost in float32; it must score as the same wave on 0."""
    wave = np.sin(np.arange(60) / 3)
    settings = Forecasting.model_settings(make_config(), [{"load": value + offset} for value in wave])
    torch.manual_seed(0)
    model = TransformerForecaster(TransformerForecasterConfig(**SMALL, **settings)).eval()
    scores = evaluate(model, Forecasting.from_model(None, model.config), [{"load": value + offset} for value in wave])
    torch.manual_seed(0)
    low = Forecasting.model_settings(make_config(), [{"load": value} for value in wave])
    model = TransformerForecaster(TransformerForecasterConfig(**SMALL, **low)).eval()
    expected = evaluate(model, Forecasting.from_model(None, model.config), [{"load": value} for value in wave])
    assert scores.numbers == pytest.approx(expected.numbers, rel=1e-5)


@pytest.mark.parametrize(
    "values, problem",
    [
        (["1", "inf"], "load is inf in row 1 of the split, which is not finite; fix or remove the row"),
        ([None, 2.0], "load is nan in row 0 of the split, which is not finite"),
        (["1", "1_000"], "forecasting.series: load is '1_000' in row 1 of the split, not a number"),
        ([1, 10**400], "forecasting.series: load is 1.* in row 1 of the split, not a number"),
        ([1e200, -1e200], "load has values from -1e.200 to 1e.200, too large or too near one another"),
        ([1e-200, -1e-200], "too near one another to be standardised; take another unit"),
        ([1e8 + 0.1] * 7, "forecasting.series: load is the same in all rows of train; leave it out"),
    ],
)
def test_values_that_are_not_numbers(values, problem):
    with pytest.raises(DataError, match=problem):
        Forecasting.model_settings(make_config(), [{"load": value} for value in values])


def test_skipped_values_count_in_no_mean():
    rows = [{"load": value} for value in ("1", "inf", "3", "")]
    settings = Forecasting.model_settings(make_config(on_bad_row="skip"), rows)
    assert settings == {"series": ["load"], "means": [2.0], "stds": [1.0]}


@pytest.mark.parametrize(
    "times, problem",
    [
        (["9", "10", "11.5"], None),
        (["2024-01-31 23:00", "2024-02-01", "2024-02-01T00:00:00.5Z"], None),
        (["2024-01", "2024-02", "2024-10"], None),
        ([date(2024, 1, 31), datetime(2024, 2, 1), datetime(2024, 2, 1, 1)], None),
        (["2024-01-02", "2024-01-01", "2024-01-03"], "'2024-01-01' in row 1 .* is not later than '2024-01-02' before"),
        ([1, 2, 2], "2 in row 2 of the split is not later than 2 before it"),
        (["1", "2", "13/01/2024"], "'13/01/2024' in row 2 of the split is not a number or an ISO date"),
        (["1", "2", "2024-01-01"], "'2024-01-01' in row 2 of the split is not a number or an ISO date"),
        ([1.0, float("nan"), 2.0], "nan in row 1 of the split is not a number or an ISO date"),
    ],
)
def test_the_order_of_time(times, problem):
    task = Forecasting(2, 1, ["load"], [1.0])
    rows = [{"load": step, [*Forecasting.columns(make_config(time="date"))][-1]: t} for step, t in enumerate(times)]
    with nullcontext() if problem is None else pytest.raises(DataError, match=f"forecasting.time: {problem}"):
        assert len(task.to_samples(rows)) == 1


def test_the_column_of_time_is_read(make_task):
    """Of the validation first, which is encoded before a batch of training rows is made."""
    with pytest.raises(DataError, match=r"forecasting.time: 't68' in row 0 of the split is not .*power.csv:70\)"):
        train(make_task("forecasting", forecasting={"time": "date"}))


def test_a_gap_in_a_series_is_named(make_task, tmp_path):
    config = make_task("forecasting")
    file = tmp_path / "data" / "power.csv"
    lines = file.read_text().splitlines()
    date, high, _, load_ = lines[31].split(",")
    file.write_text("\n".join([*lines[:31], f"{date},{high},,{load_}", *lines[32:]]))
    with pytest.raises(DataError, match="OT is nan in row 30 of the split, which is not finite"):
        train(config)
    config = config.model_copy(update={"data": config.data.model_copy(update={"on_bad_row": "skip"})})
    assert train(config).scores["training"]["skipped_rows"] > 0


def test_gradient_accumulation_in_forecasting(make_task):
    """Windows weigh the same however a step is cut: 1 x 8 and 4 x 2 give the same weights."""
    weights = []
    for rows, steps in ((8, 1), (2, 4)):
        training = {
            "per_device_train_batch_size": rows,
            "gradient_accumulation_steps": steps,
            "max_steps": 1,
            "output_dir": f"{make_task('forecasting').training['output_dir']}-{rows}",
            "data_seed": 1,
        }
        config = make_task("forecasting", training=training, model={"dropout": 0.0, "head_dropout": 0.0})
        config = config.model_copy(update={"data": config.data.model_copy(update={"train": "train[:23]"})})
        weights.append(load_file(train(config).output_dir / "model.safetensors"))
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-4, atol=1e-5, msg=name)
