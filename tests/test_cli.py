"""The command as a whole, and the scripts of a clone; tests/commands/ has the subcommands."""

import json
import math
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from pydantic.fields import FieldInfo

from pipeline import cli
from pipeline.commands import train
from pipeline.commands.report import Report
from pipeline.config import Config
from pipeline.errors import ConfigError, DataError, NotPublished, RunError, Stopped, TeacherForcingError
from tests.conftest import ROOT

SUBCOMMANDS = ["tokenizer", "inspect", "train", "average", "plot", "score", "trace", "generate", "export", "publish"]


def execute(*words, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=200, **options)


# ---- the command as a whole


def test_help_shows_the_subcommands_in_one_screen(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert stop.value.code == 0 and len(lines) <= 24 and max(map(len, lines)) <= 100
    first_words = [line.split()[0] for line in lines if line.startswith("  ")]
    assert [word for word in first_words if word in cli.COMMANDS] == [*cli.COMMANDS]
    assert {*SUBCOMMANDS} <= {*cli.COMMANDS}


def test_a_command_is_one_line_of_the_table():
    commands = {"train": cli.COMMANDS["train"], "sew": cli.Command("Mend", "close a tear", train)}
    assert cli.as_table(commands).splitlines()[-2:] == ["Mend:", "  sew    close a tear"]


# ---- reports


def answer(capsys, as_json: bool, error: TeacherForcingError | None = None) -> tuple[int, str, str]:
    """Run a subcommand that says something, reports, and may then fail."""

    def run(arguments: Namespace) -> Report:
        print("working")
        return Report({"n": math.nan, "text": "é"}, "done", error)

    code = cli.print_errors(cli.run_and_print, Namespace(run=run, json=as_json))
    return code, *capsys.readouterr()


def test_a_report_is_text_or_the_only_thing_on_standard_output(capsys, monkeypatch):
    assert answer(capsys, as_json=False) == (0, "working\ndone\n", "")
    code, out, err = answer(capsys, as_json=True)
    assert code == 0 and json.loads(out) == {"n": None, "text": "é"} and err == "working\n"
    monkeypatch.setenv("RANK", "1")
    assert answer(capsys, as_json=True) == (0, "", "working\n")


def test_an_error_of_a_report_comes_behind_it(capsys):
    code, out, err = answer(capsys, as_json=True, error=RunError("no room"))
    assert code == 3 and "text" in json.loads(out) and err == "working\nerror: no room\n"


@pytest.mark.parametrize(
    "name, text",
    [
        ("train", "--accept-changes"),
        ("tokenizer", "Kinds: bpe, unigram, wordpiece, word, word_punct, character"),
        ("generate", "do_sample=true top_k=10"),
        ("score", "--predictions"),
        ("trace", "--output"),
        ("inspect", "--rows"),
        ("average", "--best"),
        ("plot", "--score"),
        ("export", "--json"),
        ("publish", "--public"),
    ],
)
def test_help_of_a_subcommand(capsys, name, text):
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0 and text in shown
    assert f"usage: teacher-forcing {name} " in shown and "==SUPPRESS==" not in shown


def test_the_help_of_train_is_the_manual(capsys):
    """Every key of every section, and every exit code of the errors."""
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    shown = capsys.readouterr().out

    def names(key: str, field: FieldInfo) -> list[str]:
        below = getattr(field.annotation, "model_fields", {})
        return [name for part in below for name in names(f"{key}.{part}", below[part])] or [key]

    keys = [name for section, field in Config.model_fields.items() for name in names(section, field)]
    assert "evaluation.sacrebleu.tokenize" in keys and all(f"  {key}:" in shown for key in keys)
    for error in (ConfigError, DataError, RunError, NotPublished, Stopped):
        assert f"\n  {error.exit_code} " in shown
    assert "\n  0 " in shown and "\n  130 " in shown


@pytest.mark.parametrize("words", [[], ["trian"], ["train"], ["generate", "--sett"], ["score", "x", "--split", "y"]])
def test_a_wrong_command_line_is_a_usage_error(capsys, words):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2 and "usage: teacher-forcing" in capsys.readouterr().err


def test_what_takes_long_is_imported_by_the_subcommand_that_needs_it():
    """So help and usage errors are answered at once."""
    code = "import sys, pipeline.cli; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    names = execute(sys.executable, "-c", code, cwd=ROOT, check=True).stdout.split()
    assert not {"torch", "transformers", "datasets", "numpy", "accelerate", "pydantic"} & {*names}


# ---- errors


@pytest.mark.parametrize(
    "error, code, text",
    [
        (ConfigError("data.path: wrong"), 2, "error: data.path: wrong\n"),
        (DataError("x.jsonl:3: wrong"), 2, "error: x.jsonl:3: wrong\n"),
        (RunError("disk full"), 3, "error: disk full\n"),
        (NotPublished("not on the Hub"), 4, "error: not on the Hub\n"),
        (Stopped("stopped and saved after step 3"), 75, "\nstopped and saved after step 3\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted; the same command goes on from the newest checkpoint, where "),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(monkeypatch, capsys, error, code, text):
    monkeypatch.setattr("pipeline.tasks.config_loading.load_config", lambda *_: (_ for _ in ()).throw(error))
    assert cli.main(["train", "x.yaml"]) == code
    captured = capsys.readouterr()
    assert captured.err.startswith(text) and captured.err.strip().count("\n") == 0 and not captured.out


@pytest.mark.parametrize("bug", [RuntimeError, ValueError, OSError, TypeError])
def test_a_bug_keeps_its_traceback(monkeypatch, capsys, bug):
    monkeypatch.setattr("pipeline.tasks.config_loading.load_config", lambda *_: (_ for _ in ()).throw(bug("of ours")))
    with pytest.raises(bug, match="of ours"):
        cli.main(["train", "x.yaml"])
    assert not capsys.readouterr().err


def test_only_training_goes_on_after_an_interrupt(capsys):
    def interrupted(arguments: Namespace) -> None:
        raise KeyboardInterrupt

    assert cli.print_errors(interrupted, Namespace()) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"
    assert cli.print_errors(interrupted, Namespace(), "; go on") == 130
    assert capsys.readouterr().err == "\ninterrupted; go on\n"


def test_an_error_that_quotes_anything_is_one_line(capsys):
    def fail(arguments: Namespace) -> None:
        raise ConfigError("data.path: 'a\nb\r\x1b[2J': no such\nfile")

    assert cli.print_errors(fail, Namespace()) == 2
    assert capsys.readouterr().err == "error: data.path: 'a b \\x1b[2J': no such file\n"


def test_a_run_has_its_own_exit_code(capsys):
    assert cli.print_errors(lambda arguments: 1, Namespace()) == 1
    assert cli.print_errors(lambda arguments: None, Namespace()) == 0


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("to, code", [("| true", 141), ("> /dev/full", 3)])
def test_a_standard_output_that_is_closed_or_full(to, code, unbuffered):
    program = (
        "import sys, time; from argparse import Namespace; from pipeline.cli import print_errors; time.sleep(0.3); "
    )
    program += "sys.exit(print_errors(lambda _: [print('x' * 99) for _ in range(2000)] and None, Namespace()))"
    done = execute(
        *("bash", "-c", f'"$0" -c "$1" {to}; exit ${{PIPESTATUS[0]}}', sys.executable, program),
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    assert done.returncode == code, done.stderr
    expected = "" if code == 141 else "error: standard output: No space left on device; write it elsewhere\n"
    assert done.stderr == expected


PATHS = ("loop", "x" * 300, "a\0b", "file/x", "a\udcffb")


@pytest.mark.parametrize("name", PATHS, ids=("loop", "long", "NUL", "below a file", "not UTF-8"))
@pytest.mark.parametrize(
    "words",
    [
        ["train", "{}"],
        ["tokenizer", "{}", "--files", "file"],
        ["tokenizer", "out", "--files", "{}"],
        ["tokenizer", "out", "--data", "{}"],
        ["tokenizer", "out", "--sentencepiece", "{}"],
        ["generate", "{}", "text"],
        ["score", "{}"],
        ["trace", "{}", "a", "b"],
        ["publish", "{}", "me/x"],
    ],
    ids=" ".join,
)
def test_paths_that_cannot_be(tmp_path, monkeypatch, command, words, name):
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    Path("file").write_text("hello world\n")
    done = command(*[word.format(name) for word in words])
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not done.stdout and not Path("out").exists()


# ---- one command, three ways to type it


@pytest.mark.parametrize("subcommand", SUBCOMMANDS)
def test_a_script_of_a_clone_is_its_subcommand(tmp_path, subcommand):
    """Wherever it is called from."""
    names = {"tokenizer": "train_tokenizer", "inspect": "inspect_data"}
    script = ROOT / "scripts" / f"{names.get(subcommand, subcommand)}.py"
    done = execute(sys.executable, script, "--no-such-option", cwd=tmp_path)
    assert done.returncode == 2 and f"usage: teacher-forcing {subcommand} " in done.stderr


def test_a_script_ends_with_the_exit_code_of_the_command(tmp_path):
    for words in (["scripts/train.py"], ["-m", "pipeline.cli", "train"]):
        done = execute(sys.executable, *words, tmp_path / "none.yaml", cwd=ROOT)
        assert done.returncode == 2 and done.stderr == f"error: {tmp_path / 'none.yaml'}: no such config file\n"


def test_the_installed_command_is_the_module(tmp_path):
    command = Path(sys.executable).with_name("teacher-forcing")
    module = execute(sys.executable, "-m", "pipeline.cli", "--help", cwd=ROOT, check=True)
    assert "usage: teacher-forcing " in module.stdout
    if not command.is_file():
        pytest.skip("the project is not installed: pip install --editable .")
    assert execute(command, "--help", cwd=tmp_path, check=True).stdout == module.stdout
