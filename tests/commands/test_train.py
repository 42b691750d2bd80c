"""`teacher-forcing train`; tests/test_launchers.py has several processes."""

from pathlib import Path

from pipeline.commands.train import _scores
from pipeline.run import RunResult
from tests.conftest import write_config


def test_train_prints_predictions_scores_and_places(command, make_config, tmp_path):
    config = write_config(make_config, tmp_path / "run.yaml", training={"disable_tqdm": False})
    done = command("train", config, "training.max_steps=2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("right  ") + done.stdout.count("wrong  ") >= 8
    for said in ("Scores on validation", "Scores on test", "exact_match", "training_curves.png", "metrics.json"):
        assert said in done.stdout
    assert "2/2" not in done.stderr and "'eval_loss'" in done.stdout  # without a terminal, log lines but no bar
    again = command("train", config, "training.max_steps=2")
    assert again.returncode == 0 and "finished already" in again.stdout


def test_scores_of_several_are_one_line():
    scores = {"generation": {"by_penalty": {"0.8": 25.694382545, "1.0": 26.0}, "corpora": {"real": {"rows": 3}}}}
    lines = list(_scores(RunResult(Path("run"), scores)))
    assert lines[1:] == [
        "  by_penalty             0.8: 25.6944, 1.0: 26.0000",
        "  corpora                real: (rows: 3)",
    ]


def test_train_names_what_is_wrong(command, make_config, tmp_path):
    config = write_config(make_config, tmp_path / "run.yaml")
    for override, message in (
        ("data.pth=x", "unknown key data.pth; did you mean path"),
        ("data.path=nil", "data.path: 'nil'"),
    ):
        done = command("train", config, "--accept-changes", override)  # options may come first
        assert done.returncode == 2 and done.stderr.strip().splitlines()[-1].startswith("error: ")
        assert message in done.stderr
