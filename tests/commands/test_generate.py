"""`teacher-forcing generate`."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet
import pytest
import torch

from pipeline.data.corpus import Corpus, Text
from pipeline.inference.hypotheses import Hypothesis
from pipeline.inference.parts import Output
from pipeline.tasks.sequence_to_sequence import SequenceToSequence
from tests.conftest import ROOT


def test_generate(command, finished_folder, tmp_path):
    answers = command("generate", finished_folder, "1 2 3 4", "5 6 7 8")
    assert answers.returncode == 0, answers.stderr
    assert len(answers.stdout.splitlines()) == 2
    (tmp_path / "texts").write_text("1 2 3 4\r\n\n5 6 7 8\n")
    first, second = answers.stdout.splitlines()
    assert command("generate", finished_folder, "--file", tmp_path / "texts").stdout == f"{first}\n\n{second}\n"
    assert command("generate", finished_folder, stdin="1 2 3 4\n5 6 7 8").stdout == answers.stdout
    sampled = ["--set", "do_sample=true", "top_k=10", "temperature=2.0", "--seed", "1"]
    one, two = (
        command("generate", finished_folder, *words)
        for words in (["1 2 3 4", *sampled], ["--seed", "1", "1 2 3 4", *sampled[:-2]])
    )
    assert one.returncode == 0 and one.stdout == two.stdout


def test_samples_that_agree(command, finished_folder):
    words = ["1 2 3 4", "", "5 6 7 8"]
    done = command("generate", finished_folder, *words, "--mbr", 8, "--set", "max_new_tokens=4")
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 3, done.stderr
    one_by_one = [*words, "--mbr", 8, "--seed", 0, "--batch-size", 1, "--set", "max_new_tokens=4"]
    assert command("generate", finished_folder, *one_by_one).stdout == done.stdout
    own = ["--mbr", 8, "--set", "max_new_tokens=4", "do_sample=true", "top_k=1"]
    greedy = command("generate", finished_folder, *words, "--set", "max_new_tokens=4")
    assert command("generate", finished_folder, *words, *own).stdout == greedy.stdout


def test_generate_names_what_is_wrong(command, finished_folder, tmp_path):
    (tmp_path / "latin").write_bytes(b"1 2\n3 \xff 4\n")
    for words, message in (
        (["1 2 3 4", "--set", "topk=10"], "--set: generation.topk is not one of GenerationConfig; did you mean top_k?"),
        (["1 2 3 4", "--set", "top_k=10"], "--set: "),  # which needs do_sample
        (
            ["1 2 3 4", "--set", "do_sample=true", "top_k=-1"],
            "--set: generation.top_k: Input should be greater",
        ),
        (["1 2 3 4", "--set", "num_beams=many"], "--set: "),
        (
            ["1 2 3 4", "--mbr", "4", "--set", "num_beams=2"],
            "--set: --mbr draws samples and has no beams; leave out num",
        ),
        (["1 2 3 4", "--mbr", "4", "--set", "do_sample=false"], "--set: --mbr draws samples"),
        (["1 2 3 4", "--mbr", "4", "--n-best", "2"], "num_best: mbr gives one text a row"),
        (["1 2 3 4", "--mbr", "4", "--scores"], "scores: mbr gives one text a row"),
        (["1 2 3 4", "--file", tmp_path / "latin"], "give texts or --file, not both"),
        (["--file", tmp_path / "nothing"], f"--file {tmp_path / 'nothing'}: No such file or directory"),
        (["--file", tmp_path / "latin"], f"{tmp_path / 'latin'}:2: invalid UTF-8"),
        (["1 2", "3 \udcff"], "text 2: invalid UTF-8"),
        (["1 2", "--output", tmp_path / "a.jsonl.gz"], f"--output {tmp_path / 'a.jsonl.gz'}: answers are not written"),
        (["1 2", "--output", tmp_path / "a.csv"], f"--output {tmp_path / 'a.csv'}: answers are not written as .csv; "),
    ):
        done = command("generate", finished_folder, *words)
        assert done.returncode == 2 and done.stderr.startswith(f"error: {message}") and not done.stdout
    done = command("generate", finished_folder, stdin=b"1 2\n\xff\n")
    assert done.returncode == 2 and "error: standard input:2: invalid UTF-8" in done.stderr
    done = command("generate", tmp_path / "nothing", "1 2")
    assert done.returncode == 2 and "error: " in done.stderr
    with pytest.raises(SystemExit):
        command("generate", finished_folder, "1 2", "--batch-size", "0")


@pytest.mark.parametrize("words", [["generate", "1 2 3"], ["score", "--split", "test"]], ids=["generate", "score"])
def test_the_type_of_the_weights(command, finished_folder, monkeypatch, words):
    types = []
    predict = SequenceToSequence.predict

    def watched(task, model, batch, generation):
        types.append(model.dtype)
        return predict(task, model, batch, generation)

    monkeypatch.setattr(SequenceToSequence, "predict", watched)
    name, *arguments = words
    for given in ([], ["--dtype", "bf16"], ["--dtype", "float32"]):
        done = command(name, finished_folder, *arguments, *given)
        assert done.returncode == 0, done.stderr
    assert types == [torch.float32, torch.bfloat16, torch.float32]
    done = command(name, finished_folder, *arguments, "--dtype", "int8")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --dtype: 'int8' is unknown; choose from float32, bfloat16, bf16,")
    done = command(name, finished_folder, *arguments, "--dtype", "bf16", "--engine", "onnx")
    assert done.returncode == 2 and "--dtype bf16: an export for onnx has its own type" in done.stderr


@pytest.fixture
def echo(monkeypatch):
    """A model that says its source backwards."""

    def find(model, task, samples, batch, generation, wanted):
        return [[Hypothesis(sample["source"][::-1], -1.0)] for sample in samples]

    monkeypatch.setattr("pipeline.inference.corpus.find_hypotheses", find)


def test_tables_data_sets_and_formats(command, finished_folder, tmp_path, echo):
    texts = ["1 2 3 4", "", "5 6 7 8"]
    table = tmp_path / "texts.jsonl"
    table.write_text("".join(json.dumps({"t": {"en": text}}) + "\n" for text in texts))
    first, second = "4 3 2 1", "8 7 6 5"
    for words in (["--file", table], ["--data", tmp_path, "--split", "texts.jsonl"], ["--data", table]):
        done = command("generate", finished_folder, *words, "--column", "t.en")
        assert done.returncode == 0 and done.stdout == f"{first}\n\n{second}\n" and not done.stderr
    done = command("generate", finished_folder, "--file", table, "--column", "t.en", "--format", "jsonl")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows == [{"source": s, "target": t} for s, t in zip(texts, (first, "", second), strict=True)]
    output = tmp_path / "new" / "out.parquet"
    done = command("generate", finished_folder, "--file", table, "--column", "t.en", "--output", output, "--scores")
    assert done.returncode == 0 and not done.stdout and done.stderr == "3 texts, 1 empty\n"
    assert [row["target"] for row in pyarrow.parquet.read_table(output).to_pylist()] == [first, "", second]
    done = command("generate", finished_folder, "--data", "reversal", "--split", "test")
    assert len(done.stdout.splitlines()) == 1000


def test_texts_one_at_a_time_are_answered_before_the_next_is_read(command, finished_folder, monkeypatch, capsys, echo):
    def texts():
        yield Text(0, "text 1", "1 2")
        assert capsys.readouterr().out == "2 1\n"
        yield Text(1, "text 2", "3 4")

    monkeypatch.setattr("pipeline.data.corpus.text_stream", lambda stream, name: Corpus(texts, {}))
    assert command("generate", finished_folder, "--batch-size", "1").stdout == "4 3\n"


def test_a_bad_row_ends_the_command_or_has_an_empty_answer(command, finished_folder, tmp_path, echo):
    table = tmp_path / "texts.csv"
    table.write_bytes(b"source\n1 2\n\xff\n3 4\n")
    done = command("generate", finished_folder, "--file", table)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {table}:3: ") and "--on-bad-row skip" in done.stderr
    done = command("generate", finished_folder, "--file", table, "--on-bad-row", "skip")
    assert done.returncode == 0 and done.stdout == "2 1\n\n4 3\n"
    assert done.stderr.startswith(f"3 texts, 1 without an answer (the first: {table}:3: ")


def test_an_output_that_was_interrupted_goes_on(command, finished_folder, tmp_path, monkeypatch, echo):
    texts, output = tmp_path / "texts", tmp_path / "out.jsonl"
    texts.write_text("".join(f"{n % 8 + 1} {n % 3 + 1} 5\n" for n in range(70)))
    words = [finished_folder, "--file", texts, "--batch-size", "1"]
    whole = command("generate", *words, "--output", tmp_path / "whole.jsonl")
    assert whole.stderr == "70 texts\n" and len((tmp_path / "whole.jsonl").read_text().splitlines()) == 70
    write = Output.write

    def interrupt(self, number, *arguments):
        if number == 2:
            raise KeyboardInterrupt
        write(self, number, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Output, "write", interrupt)
        done = command("generate", *words, "--output", output)
    assert done.returncode == 130 and done.stderr == "\ninterrupted; the same command goes on with --resume\n"
    done = command("generate", *words, "--output", output)
    assert done.returncode == 2 and "out.jsonl.parts exists; go on with it by --resume" in done.stderr
    done = command("generate", *words, "--output", output, "--resume", "--set", "num_beams=2")
    assert done.returncode == 2 and "another settings.generation (" in done.stderr
    done = command("generate", *words, "--output", output, "--resume")
    assert done.returncode == 0 and output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    texts.write_text("1 2\n")
    done = command("generate", *words, "--output", output, "--resume")
    assert done.returncode == 2 and "another data.content (" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["1", "--data", "x"], "give texts or --data, not both"),
        (["1", "--split", "test"], "--split is of a data set: name one by --data"),
        (["1", "--resume"], "--resume needs --output FILE"),
        (["1", "--push-to-hub", "me/x"], "--push-to-hub needs --output FILE"),
        (["1", "--public"], "--public is of --push-to-hub OWNER/NAME"),
        (["1", "--format", "parquet"], "--format parquet needs --output FILE"),
        (["1", "--alignments"], "--format text has no place for tokens; choose --format jsonl or parquet"),
        (["1", "--push-to-hub", "me/x", "--output", "o.txt"], "--push-to-hub needs columns; choose --format jsonl"),
        (["1", "--output", "."], "--output . is a folder; name a file in it"),
        (["1", "--column", "en"], "--column en is of a table, such as .jsonl; other texts have no columns"),
        (["--file", "nothing.jsonl"], "--file nothing.jsonl: there is no such file"),
    ],
)
def test_options_that_do_not_go_together(command, tmp_path, words, message):
    done = command("generate", tmp_path / "none", *words)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1


def test_answers_become_a_data_set_of_the_hub(command, finished_folder, tmp_path, hub, hub_name):
    texts, output = tmp_path / "texts", tmp_path / "out.jsonl"
    texts.write_text("1 2\n\n3 4\n")
    words = ["--file", texts, "--output", output, "--push-to-hub", hub_name]
    done = command("generate", finished_folder, *words)
    assert done.returncode == 0, done.stderr
    (*_, commit) = hub.commits(hub_name, "datasets")
    assert sorted(commit["files"]) == ["README.md", "train.jsonl"]
    assert hub.blobs()[commit["files"]["train.jsonl"]["sha256"]] == output.read_bytes()


@pytest.mark.slow
def test_killed_twenty_times_it_writes_the_same_bytes(finished_folder, tmp_path):
    """By SIGKILL, at moments drawn by a seeded generator from the time that a whole run takes."""
    texts, output = tmp_path / "texts", tmp_path / "out.jsonl"
    texts.write_text("".join(f"{n % 8 + 1} {n % 7 + 1} {n % 5 + 1} 5\n" if n % 9 else "\n" for n in range(60_000)))
    words = [sys.executable, "-m", "pipeline.cli", "generate", finished_folder, "--file", texts, "--batch-size", "64"]

    def start(output: Path) -> subprocess.Popen:
        command = [*map(str, words), "--output", str(output), "--resume"]
        return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)

    begin = time.monotonic()
    assert start(tmp_path / "whole.jsonl").wait(300) == 0
    whole = time.monotonic() - begin
    generator, kills = random.Random(0), 0
    parts = Output(output, {}).parts
    while kills < 20:
        process = start(output)
        before = len(list(parts.glob("*.jsonl"))) if parts.exists() else 0
        while process.poll() is None and not (parts.exists() and len(list(parts.glob("*.jsonl"))) > before):
            time.sleep(0.01)  # the imports, which write nothing
        if process.poll() is None:
            time.sleep(generator.uniform(0, whole / 40))
            process.kill()
        if process.wait(60) == 0:
            break
        kills += process.returncode == -signal.SIGKILL
    assert kills == 20, "the corpus is too small to be killed in so often"
    process = start(output)
    assert process.wait(300) == 0 and output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not parts.exists()


@pytest.mark.slow
def test_two_processes_share_the_parts_and_end_together(finished_folder, tmp_path):
    texts = tmp_path / "texts"
    texts.write_text("".join(f"{n % 8 + 1} {n % 7 + 1} 5\n" for n in range(100)))
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]

    def call(output: str, *launcher: str) -> subprocess.CompletedProcess:
        words = ["-m", "pipeline.cli", "generate", finished_folder, "--file", texts, "--batch-size", "1"]
        words = [sys.executable, *launcher, *words, "--output", tmp_path / output]
        return subprocess.run([*map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=120)

    assert call("one.jsonl").returncode == 0
    done = call("two.jsonl", *launcher)
    assert done.returncode == 0 and "100 texts\n" in done.stderr
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    with texts.open("ab") as stream:
        stream.write(b"\xff\n")  # in a window of the first process
    done = call("bad.jsonl", *launcher)
    assert done.returncode != 0 and "texts:101: invalid UTF-8" in done.stderr
    assert not (tmp_path / "bad.jsonl").exists()
