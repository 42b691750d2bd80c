"""`teacher-forcing plot`."""

import json
from pathlib import Path

import pytest

LOG = [
    {"step": 2, "epoch": 0.5, "loss": 3.0, "grad_norm": 1.0},
    {"step": 2, "epoch": 0.5, "eval_loss": 2.5, "eval_perplexity": 12.0, "eval_chrf": 40.0},
    {"step": 4, "epoch": 1.0, "loss": float("nan"), "grad_norm": 1.0},
]


@pytest.fixture
def make_run(tmp_path):
    """Writes checkpoints with a log, as a run that goes on has them."""

    def make(name: str, log: list[dict], steps: tuple[int, ...] = (4,)) -> Path:
        for step in steps:
            checkpoint = tmp_path / name / f"checkpoint-{step}"
            checkpoint.mkdir(parents=True)
            lines = [line for line in log if line["step"] <= step]
            (checkpoint / "trainer_state.json").write_text(json.dumps({"log_history": lines}))
        return tmp_path / name

    return make


def test_runs_in_one_picture(command, finished_folder, make_run, tmp_path):
    done = command("plot", finished_folder, make_run("other", LOG), "--output", tmp_path / "x.png", "--score", "loss")
    assert done.returncode == 0 and done.stdout == f"{tmp_path / 'x.png'}\n", done.stderr
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_drawn_is_said_as_json(command, make_run, tmp_path):
    first, second = make_run("first", LOG), make_run("second", [*LOG, {"step": 9, "loss": 1.0}], (4, 10))
    done = command("plot", first, second, "--output", tmp_path / "x.svg", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "picture": str(tmp_path / "x.svg"),
        "runs": {
            "first": {"folder": str(first), "loss": 3.0, "eval_loss": 2.5, "eval_chrf": 40.0},
            "second": {"folder": str(second), "loss": 1.0, "eval_loss": 2.5, "eval_chrf": 40.0},
        },
    }


def test_what_cannot_be_drawn_is_named(command, make_run, tmp_path):
    run, bare, other = make_run("run", LOG), make_run("bare", []), make_run("other", LOG[:1])
    picture = tmp_path / "x.png"
    for words, said in (
        ([tmp_path / "none"], f"{tmp_path / 'none'}: there is no checkpoint"),
        ([bare], f"{bare}: nothing is logged yet; see training.logging_steps"),
        ([run, "--score", "chfr"], f"--score: {run} has logged no 'chfr'; did you mean chrf?"),
        ([run, other, "--score", "chrf"], f"--score: {other} has logged no 'chrf'; choose from grad_norm, loss"),
        ([run, run], "a run is named twice"),
        ([run, "--output", tmp_path / "x.jpg2"], f"--output {tmp_path / 'x.jpg2'}: name a picture that ends in .png"),
        ([run, "--output", tmp_path / "no" / "x.png"], f"--output {tmp_path / 'no' / 'x.png'}: No such file"),
    ):
        done = command("plot", *words, *([] if "--output" in words else ["--output", picture]))
        assert done.returncode == 2 and done.stderr.startswith(f"error: {said}"), done.stderr
    assert not picture.exists()


def test_runs_without_a_score_have_their_losses(command, make_run, tmp_path):
    runs = make_run("a", LOG[:1]), make_run("b", LOG)
    done = command("plot", *runs, "--output", tmp_path / "x.pdf", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["runs"]["a"].keys() == {"folder", "loss"}, done.stderr
