"""Forecasting as a task: windows of series, scores in both units, errors that name row and series."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from pipeline.errors import ConfigError, DataError
from pipeline.inference.generation import generate
from pipeline.run import RunFolder, train
from pipeline.tasks.forecasting import Forecasting
from pipeline.tasks.trained_model import load_trained


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
        ({"series": ["HUFL", "TO"]}, DataError, "there is no column 'TO'; choose from HUFL, OT"),
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
