"""`teacher-forcing average`; tests/training/test_averaging.py has the means."""

import json

import pytest

from pipeline import cli


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((".", "--last", "2", "--best", "2"), "not allowed with"),
        ((".", ".", "--best", "2"), "choose from the checkpoints of one run; name its folder, and nothing else"),
        (("owner/name", "--last", "2"), "choose from the checkpoints of one run"),
        ((".",), "there is one checkpoint, which is its own mean; name more"),
        ((".", "--last", "2"), "there is no checkpoint; name the folder of a run"),
        ((".", "--best", "2"), "there is no checkpoint; name the folder of a run"),
    ],
)
def test_a_wrong_command_line(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    codes: list[object] = []
    try:
        codes.append(cli.main(["average", *words, "--output", "mean"]))
    except SystemExit as stop:  # of the parser
        codes.append(stop.code)
    assert codes == [2] and message in capsys.readouterr().err


def test_what_is_averaged_is_used_as_any_model(command, finished_run, tmp_path):
    answer = command("average", finished_run, "--last", 2, "--output", tmp_path / "mean", "--json")
    report = json.loads(answer.stdout)
    assert answer.returncode == 0 and report["folder"] == str(tmp_path / "mean")
    assert report["checkpoints"] == [str(finished_run / f"checkpoint-{step}") for step in (4, 2)]
    scored = command("score", tmp_path / "mean")
    assert scored.returncode == 0 and json.loads(scored.stdout)["loss"] > 0
