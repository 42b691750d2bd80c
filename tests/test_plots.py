import numpy as np
import pytest
from PIL import Image, ImageColor

from pipeline.plots import RUN_COLOURS, draw_forecasts, draw_lengths, draw_runs, draw_training_curves
from tests.conftest import colours_of


def test_training_curves(tmp_path):
    history = [{"step": step, "loss": 3 / step, "token_accuracy": 1 - 1 / step} for step in range(1, 60)]
    history += [{"step": 30, "eval_loss": 0.5, "eval_token_accuracy": 0.9}]
    draw_training_curves(history, tmp_path / "both.png", "token_accuracy")
    draw_training_curves(history[:59], tmp_path / "train.png", "token_accuracy")
    draw_training_curves(history, tmp_path / "smoothed.png", "token_accuracy", label_smoothing=0.1)
    assert (tmp_path / "smoothed.png").read_bytes() != (tmp_path / "both.png").read_bytes()  # the legend says so
    both, train = (Image.open(tmp_path / name).convert("RGB") for name in ("both.png", "train.png"))
    assert both.size == train.size == (1200, 480)
    assert both.tobytes() != train.tobytes()  # the validation point is drawn
    colours = colours_of(both)
    assert (31, 119, 180) in colours and (255, 127, 14) in colours  # a line for each


@pytest.mark.parametrize(
    "logged, score, panels", [("accuracy", "accuracy", 2), ("mae", "mae", 2), ("other", "mae", 1), ("other", None, 1)]
)
def test_curves_of_other_tasks(tmp_path, logged, score, panels):
    """The score that the task names has a panel if it was logged; no other has."""
    history = [{"step": 1, "loss": 1.0}, {"step": 2, f"eval_{logged}": 0.5}]
    draw_training_curves(history, tmp_path / "curves.png", score)
    assert Image.open(tmp_path / "curves.png").size == (600 * panels, 480)


@pytest.mark.filterwarnings("error::UserWarning")
def test_runs_have_colours_of_their_own(tmp_path):
    """In all panels, also where a run has nothing to draw in one; names are shown as they are."""
    runs = ["_old", "lr_$3e-4$", *"abcdef"]
    curves = {
        "training loss": {run: [(1, number), (2, number)] for number, run in enumerate(runs)},
        "a $ b": {run: [(1, number)] * (run != "a") for number, run in enumerate(runs)},
    }
    draw_runs(curves, tmp_path / "runs.png")
    picture = Image.open(tmp_path / "runs.png").convert("RGB")
    assert {ImageColor.getrgb(colour) for colour in RUN_COLOURS} <= colours_of(picture)
    draw_runs({"training loss": {"one": [(1, 1.0)]}}, tmp_path / "one.png")
    draw_runs({"training loss": {"x" * 300: [(1, 1.0)]}}, tmp_path / "long.png")
    assert Image.open(tmp_path / "one.png").width == Image.open(tmp_path / "long.png").width == picture.width / 2


def test_forecasts(tmp_path):
    past, future = np.random.default_rng(0).normal(size=(2, 3, 20, 2))
    draw_forecasts(["HUFL", "OT"], past, future[:, :5], future[:, 5:10], tmp_path / "forecasts.png")
    colours = colours_of(Image.open(tmp_path / "forecasts.png").convert("RGB"))
    assert (31, 119, 180) in colours and (255, 127, 14) in colours


def test_a_run_without_logs_still_gives_a_picture(tmp_path):
    draw_training_curves([], tmp_path / "none.png", "token_accuracy")
    assert (tmp_path / "none.png").stat().st_size > 0


@pytest.mark.filterwarnings("error::UserWarning")
def test_lengths_of_texts(tmp_path):
    """A panel for each side, a colour for each set; the bound is drawn where it is near."""
    counts = {
        "source": {"_a": {3: 5, 4: 9, 500: 1}, "b $x$": {2: 1}, "empty": {}},
        "target": {"_a": {6: 10}, "b $x$": {9: 3}, "empty": {}},
    }
    draw_lengths(counts, {"source": 2, "target": 5000}, tmp_path / "lengths.png")
    picture = Image.open(tmp_path / "lengths.png").convert("RGB")
    assert picture.width == 1200 and {ImageColor.getrgb(colour) for colour in RUN_COLOURS[:2]} <= colours_of(picture)
    draw_lengths({"source": {"train": {1: 1}}}, {}, tmp_path / "one.png")
    assert Image.open(tmp_path / "one.png").width == 600
