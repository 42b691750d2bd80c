from PIL import Image

from pipeline.plots import training_curves


def test_training_curves(tmp_path):
    history = [{"step": step, "loss": 3 / step, "token_accuracy": 1 - 1 / step} for step in range(1, 60)]
    history += [{"step": 30, "eval_loss": 0.5, "eval_token_accuracy": 0.9}]
    training_curves(history, tmp_path / "both.png")
    training_curves(history[:59], tmp_path / "train.png")
    training_curves(history, tmp_path / "smoothed.png", label_smoothing=0.1)
    assert (tmp_path / "smoothed.png").read_bytes() != (tmp_path / "both.png").read_bytes()  # the legend says so
    both, train = (Image.open(tmp_path / name).convert("RGB") for name in ("both.png", "train.png"))
    assert both.size == train.size == (1200, 480)
    assert both.tobytes() != train.tobytes()  # the validation point is drawn
    colours = {colour for _, colour in both.getcolors(1 << 20)}
    assert (31, 119, 180) in colours and (255, 127, 14) in colours  # a line for each


def test_a_run_without_logs_still_gives_a_picture(tmp_path):
    training_curves([], tmp_path / "none.png")
    assert (tmp_path / "none.png").stat().st_size > 0
