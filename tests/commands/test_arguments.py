"""The types of arguments, as the command refuses what does not fit them."""

import pytest

from pipeline import cli


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "x", "text", "--batch-size", "0"],
        ["generate", "x", "text", "--batch-size", "9" * 5000],
        ["generate", "x", "text", "--seed", "-1"],
        ["generate", "x", "text", "--file", ""],
        ["score", "x", "--batch-size", "-1"],
        ["score", ""],
        ["tokenizer", "x", "--data", "x", "--vocab-size", "-5"],
        ["tokenizer", "x", "--data", "x", "--max-texts", "0"],
        ["tokenizer", "x", "--data", "x", "--max-length", "1.5"],
        ["publish", "", "me/x"],
        ["publish", "x", ""],
        ["train", ""],
    ],
    ids=range(12),
)
def test_options_that_cannot_be(capsys, words):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2 and f"teacher-forcing {words[0]}: error: argument" in capsys.readouterr().err
