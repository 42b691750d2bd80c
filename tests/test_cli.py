"""What a user types: `teacher-forcing` and the scripts of a clone. tests/test_launchers.py has several processes."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from pydantic.fields import FieldInfo
from transformers import AutoTokenizer

from pipeline import cli
from pipeline.config import Config
from pipeline.errors import ConfigError, DataError, NotPublished, RunError, Stopped
from pipeline.run import train
from tests.conftest import ROOT, write_config

METRIC = """
import datasets
import evaluate
import pathlib

pathlib.Path({!r}).touch()

class Own(evaluate.Metric):
    def _info(self):
        texts = {{"predictions": datasets.Value("string"), "references": datasets.Value("string")}}
        return evaluate.MetricInfo(description="", citation="", features=datasets.Features(texts))

    def _compute(self, predictions, references):
        return {{"own": len(predictions)}}
"""
SUBCOMMANDS = ["train", "tokenizer", "generate", "score", "trace", "export", "publish"]


def execute(*words, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=200, **options)


# ---- the command as a whole


def test_help_lists_the_subcommands(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    first_words = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("    ")]
    assert stop.value.code == 0 and [word for word in first_words if word in SUBCOMMANDS] == SUBCOMMANDS


@pytest.mark.parametrize(
    "name, text",
    [
        ("train", "--accept-changes"),
        ("tokenizer", "Kinds: bpe, unigram, wordpiece, word, word_punct, character"),
        ("generate", "do_sample=true top_k=10"),
        ("score", "--predictions"),
        ("trace", "--output"),
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
    """So help and usage errors are answered at once, and huge pages are asked for before torch is imported."""
    code = "import sys, pipeline.cli; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    names = execute(sys.executable, "-c", code, cwd=ROOT, check=True).stdout.split()
    assert not {"torch", "transformers", "datasets", "numpy", "accelerate", "pydantic"} & {*names}
    code = "from pipeline.cli import quick_imports\nwith quick_imports():\n import torch\nimport gc, os\n"
    code += "print(os.environ['THP_MEM_ALLOC_ENABLE'], gc.isenabled())"
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    assert execute(sys.executable, "-c", code, cwd=ROOT, env=environment, check=True).stdout.split() == ["1", "True"]


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


# ---- one command, three ways to type it


@pytest.mark.parametrize("subcommand", SUBCOMMANDS)
def test_a_script_of_a_clone_is_its_subcommand(tmp_path, subcommand):
    """Wherever it is called from."""
    script = ROOT / "scripts" / ("train_tokenizer.py" if subcommand == "tokenizer" else f"{subcommand}.py")
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


# ---- the subcommands; tests/inference/test_attention.py has trace, tests/tasks the other tasks


@pytest.fixture
def checkpoint(make_config):
    return train(make_config()).output_dir


def test_train_prints_predictions_scores_and_places(command, make_config, tmp_path):
    config = write_config(make_config, tmp_path / "run.yaml", training={"disable_tqdm": False})
    done = command("train", config, "training.max_steps=2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("right  ") + done.stdout.count("wrong  ") >= 8
    for said in ("Scores on validation", "Scores on test", "exact_match", "training_curves.png", "metrics.json"):
        assert said in done.stdout
    assert "2/2" in done.stderr  # the progress bar
    again = command("train", config, "training.max_steps=2")
    assert again.returncode == 0 and "finished already" in again.stdout


def test_train_names_what_is_wrong(command, make_config, tmp_path):
    config = write_config(make_config, tmp_path / "run.yaml")
    for override, message in (
        ("data.pth=x", "unknown key data.pth; did you mean path"),
        ("data.path=nil", "data.path: 'nil'"),
    ):
        done = command("train", config, "--accept-changes", override)  # options may come first
        assert done.returncode == 2 and done.stderr.strip().splitlines()[-1].startswith("error: ")
        assert message in done.stderr


def test_generate(command, checkpoint, tmp_path):
    answers = command("generate", checkpoint, "1 2 3 4", "5 6 7 8")
    assert answers.returncode == 0, answers.stderr
    assert len(answers.stdout.splitlines()) == 2
    (tmp_path / "texts").write_text("1 2 3 4\r\n\n5 6 7 8\n")
    first, second = answers.stdout.splitlines()
    assert command("generate", checkpoint, "--file", tmp_path / "texts").stdout == f"{first}\n\n{second}\n"
    assert command("generate", checkpoint, stdin="1 2 3 4\n5 6 7 8").stdout == answers.stdout
    sampled = ["--set", "do_sample=true", "top_k=10", "temperature=2.0", "--seed", "1"]
    one, two = (
        command("generate", checkpoint, *words)
        for words in (["1 2 3 4", *sampled], ["--seed", "1", "1 2 3 4", *sampled[:-2]])
    )
    assert one.returncode == 0 and one.stdout == two.stdout


def test_generate_names_what_is_wrong(command, checkpoint, tmp_path):
    (tmp_path / "latin").write_bytes(b"1 2\n3 \xff 4\n")
    for words, message in (
        (["1 2 3 4", "--set", "topk=10"], "--set: generation.topk is not one of GenerationConfig; did you mean top_k?"),
        (["1 2 3 4", "--set", "top_k=10"], "--set: "),  # which needs do_sample
        (
            ["1 2 3 4", "--set", "do_sample=true", "top_k=-1"],
            "--set: generation.top_k: Input should be greater",
        ),
        (["1 2 3 4", "--set", "num_beams=many"], "--set: "),
        (["1 2 3 4", "--file", tmp_path / "latin"], "give texts or --file, not both"),
        (["--file", tmp_path / "nothing"], f"--file {tmp_path / 'nothing'}: No such file or directory"),
        (["--file", tmp_path / "latin"], f"{tmp_path / 'latin'}:2: invalid UTF-8"),
        (["1 2", "3 \udcff"], "text 2: invalid UTF-8"),
    ):
        done = command("generate", checkpoint, *words)
        assert done.returncode == 2 and done.stderr.startswith(f"error: {message}") and not done.stdout
    done = command("generate", checkpoint, stdin=b"1 2\n\xff\n")
    assert done.returncode == 2 and "error: standard input:2: invalid UTF-8" in done.stderr
    done = command("generate", tmp_path / "nothing", "1 2")
    assert done.returncode == 2 and "error: " in done.stderr
    with pytest.raises(SystemExit):
        command("generate", checkpoint, "1 2", "--batch-size", "0")


def test_score_gives_the_runs_own_numbers(command, checkpoint, tmp_path):
    done = command("score", checkpoint, "--split", "test", "--predictions", tmp_path / "predictions.jsonl")
    assert done.returncode == 0, done.stderr
    expected = json.loads((checkpoint / "metrics.json").read_text())["test"]
    assert json.loads(done.stdout) == pytest.approx(expected)
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 8 and set(rows[0]) == {"source", "reference", "prediction"}
    assert command("score", checkpoint / "checkpoint-2", "--split", "validation").returncode == 0
    done = command("score", checkpoint, "--split", "test", "data.test=null")
    assert done.returncode == 2 and "data.test is not set" in done.stderr
    done = command("score", checkpoint, "evaluation.metrics=[blue]")
    assert done.returncode == 2 and "error: evaluation.metrics: 'blue' is not built in" in done.stderr
    done = command("score", checkpoint, "task=language_modeling")
    assert done.returncode == 2 and "is not a model for language_modeling" in done.stderr
    done = command("score", checkpoint, "--predictions", "/dev/full")
    assert done.returncode == 3 and done.stderr.startswith("error: --predictions /dev/full: No space left")
    file = tmp_path / "no" / "x.jsonl"
    done = command("score", checkpoint, "--predictions", file)
    assert done.returncode == 2 and done.stderr == f"error: --predictions {file}: No such file or directory\n"


def test_metrics_that_a_checkpoint_names_are_not_run_unasked(command, checkpoint, tmp_path):
    code = tmp_path / "own" / "own.py"
    code.parent.mkdir()
    code.write_text(METRIC.format(str(code.with_name("was_run"))))
    config = checkpoint / "run.yaml"  # as somebody else may have published it
    config.write_text(config.read_text().replace("- exact_match", f"- {code.parent}"))
    (checkpoint / "manifest.json").unlink()
    done = command("score", checkpoint)
    assert done.returncode == 2 and "would run code; if you trust it, add --allow-metric-code" in done.stderr
    assert not code.with_name("was_run").exists()
    done = command("score", checkpoint, "--allow-metric-code")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["own"] == 8 and code.with_name("was_run").exists()


def test_tokenizer(command, make_pairs, tmp_path):
    pairs = make_pairs()
    done = command("tokenizer", tmp_path / "a", "--data", pairs, "--kind", "word", "--vocab-size", 50)
    assert done.returncode == 0, done.stderr
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a")
    assert tokenizer.convert_ids_to_tokens(tokenizer("a b")["input_ids"]) == ["a", "b", "</s>"]
    (tmp_path / "text").write_text("hello world\nhello\n" * 5)
    done = command("tokenizer", tmp_path / "b", "--files", tmp_path / "text", "--vocab-size", 300)
    assert done.returncode == 0, done.stderr
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "b").decode(
            AutoTokenizer.from_pretrained(tmp_path / "b")("  hello ✓")["input_ids"], skip_special_tokens=True
        )
        == "  hello ✓"
    )
    done = command("tokenizer", tmp_path / "c", "--sentencepiece", tmp_path / "text")
    assert done.returncode == 2 and "not a SentencePiece model" in done.stderr
    done = command("tokenizer", tmp_path / "c", "--data", pairs, "--columns", "src")
    assert done.returncode == 2 and "no column 'src'" in done.stderr


def test_tokenizer_names_what_is_wrong(command, tmp_path):
    text, latin = tmp_path / "text", tmp_path / "latin"
    text.write_text("hello world\nhello\n" * 5)
    latin.write_bytes(b"hello\nw\xf6rld\n")
    run = tmp_path / "run"
    run.mkdir()
    (run / "model.safetensors").touch()
    for words, message in (
        ([tmp_path / "a", "--files", tmp_path / "none"], f"--files {tmp_path / 'none'}: No such file or directory"),
        ([tmp_path / "a", "--files", text, latin, "--vocab-size", 300], f"{latin}:2: invalid UTF-8"),
        ([tmp_path / "a", "--files", text, "--kind", "wrod"], "--kind: 'wrod' is unknown; did you mean word?"),
        ([tmp_path / "a", "--files", text, "--vocab-size", 10], "tokenizer.vocab_size: 10 is too small"),
        ([text, "--files", text, "--vocab-size", 300], f"{text} is a file; name a folder"),
        ([run, "--files", text, "--vocab-size", 300], f"{run} holds a model, which needs its own tokenizer"),
        ([text / "a", "--files", text, "--vocab-size", 300], f"{text / 'a'}: Not a directory"),
    ):
        done = command("tokenizer", *words)
        assert done.returncode == 2 and done.stderr.startswith(f"error: {message}")
    assert not (tmp_path / "a").exists()


def test_publish(command, checkpoint, hub):
    """A finished model and a checkpoint; again costs no commit; what is not a model is refused."""
    done = command("publish", checkpoint, "team/published")
    assert done.returncode == 0 and "is published as team/published" in done.stdout, done.stderr
    assert command("publish", checkpoint / "checkpoint-2", "me/half-way").returncode == 0
    assert len(hub.commits("me/half-way")) == len(hub.commits("team/published")) == 2
    assert command("publish", checkpoint, "team/published").returncode == 0
    assert len(hub.commits("team/published")) == 2
    for folder, name, message in (
        (checkpoint / "nothing", "me/x", "no such folder"),
        (checkpoint / "runs", "me/x", "there are no weights to publish"),
        (checkpoint, "x", "name the repository to push to as owner/name"),
        (checkpoint, "you/x", "me cannot write to you/"),
    ):
        done = command("publish", folder, name)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and message in done.stderr


def test_files_of_texts_are_bounded_and_have_no_mark(tmp_path, capsys):
    (tmp_path / "marked").write_bytes(b"\xef\xbb\xbf1 2\r\n\n3\xe2\x80\xa84")
    assert cli._read_lines(tmp_path / "marked") == ["1 2", "", "3\u20284"]
    assert "".join(cli._read_files([tmp_path / "marked"])).startswith("1 2")
    assert cli.main(["tokenizer", str(tmp_path / "out"), "--files", "/dev/zero"]) == 2
    assert capsys.readouterr().err.startswith("error: /dev/zero:1: the line has more than 10 MB")
    with pytest.raises(DataError, match="/dev/zero:1: the line has more than 10 MB"):
        cli._read_lines(Path("/dev/zero"))


def test_a_tokenizer_is_trained_on_the_columns_alone(tmp_path):
    """And not on the places of the rows, nor on what is wrong with them."""
    (tmp_path / "train.jsonl").write_text('{"a": "x", "place": "y"}\n{"a": "z"}\n')
    arguments = Namespace(data=str(tmp_path), split="train", columns=["a", "place"])
    assert list(cli._read_columns(arguments)) == ["x", "y"]


def test_a_number_that_is_none_is_refused_in_words(capsys):
    for value, message in (("many", "'many' is neither a whole number nor all"), ("0", "0 is not a number from 1 to")):
        with pytest.raises(SystemExit):
            cli.main(["export", "folder", "--to", "onnx", "--num-rows", value])
        assert f"--num-rows: {message}" in capsys.readouterr().err
