"""`teacher-forcing score`."""

import json

import pytest

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


def test_score_gives_the_runs_own_numbers(command, finished_folder, tmp_path):
    done = command("score", finished_folder, "--split", "test", "--predictions", tmp_path / "predictions.jsonl")
    assert done.returncode == 0, done.stderr
    expected = json.loads((finished_folder / "metrics.json").read_text())["test"]
    assert json.loads(done.stdout) == pytest.approx(expected)
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 8 and set(rows[0]) == {"source", "reference", "prediction"}
    assert command("score", finished_folder / "checkpoint-2", "--split", "validation").returncode == 0
    done = command("score", finished_folder, "--split", "test", "data.test=null")
    assert done.returncode == 2 and "data.test is not set" in done.stderr
    done = command("score", finished_folder, "evaluation.metrics=[blue]")
    assert done.returncode == 2 and "error: evaluation.metrics: 'blue' is not built in" in done.stderr
    done = command("score", finished_folder, "model.dropout=0.5")
    assert done.returncode == 2 and "model: `score` takes the model and all of its parts" in done.stderr
    done = command("score", finished_folder, "task=language_modeling")
    assert done.returncode == 2 and "is not a model for language_modeling" in done.stderr
    done = command("score", finished_folder, "--predictions", "/dev/full")
    assert done.returncode == 3 and done.stderr.startswith("error: --predictions /dev/full: No space left")
    file = tmp_path / "no" / "x.jsonl"
    done = command("score", finished_folder, "--predictions", file)
    assert done.returncode == 2 and done.stderr == f"error: --predictions {file}: No such file or directory\n"


def test_overrides_of_generation_change_the_answers(command, finished_folder, tmp_path):
    def score(*overrides):
        file = tmp_path / "predictions.jsonl"
        done = command("score", finished_folder, "--split", "test", "--predictions", file, *overrides)
        return done, [json.loads(line)["prediction"] for line in file.read_text().splitlines()]

    _, answers = score()
    assert {len(answer.split()) for answer in answers} != {3}
    done, answers = score("generation.max_new_tokens=3", "generation.suppress_tokens=[0,1,2,3]")
    assert done.returncode == 0, done.stderr
    assert {len(answer.split()) for answer in answers} == {3}, "no special token ends them"
    done = command("score", finished_folder, "--split", "test", "generation.suppress_tokens=[999]")
    assert done.returncode == 2 and "generation.suppress_tokens: 999 is not below the" in done.stderr


def test_rows_have_log_probabilities_in_data_order(command, finished_folder, tmp_path):
    file = tmp_path / "rows.jsonl"
    done = command("score", finished_folder, "evaluation.metrics=[]", "--batch-size", 3, "--per-row", file)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["row"] for row in rows] == list(range(8)) and rows[0].keys() == {"row", "log_probability", "items"}
    mean = -sum(row["log_probability"] for row in rows) / sum(row["items"] for row in rows)
    assert json.loads(done.stdout)["loss"] == pytest.approx(mean)
    done = command("score", finished_folder, "--per-row", tmp_path)
    assert done.returncode == 2 and done.stderr == f"error: --per-row {tmp_path}: Is a directory\n"


def test_samples_that_agree_are_scored(command, finished_folder, tmp_path):
    file = tmp_path / "predictions.jsonl"
    done = command("score", finished_folder, "--mbr", 4, "--seed", 1, "--predictions", file)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    right = sum(row["prediction"] == row["reference"] for row in rows)
    assert json.loads(done.stdout)["exact_match"] == right / 8
    said = command("generate", finished_folder, "--mbr", 4, "--seed", 1, *(row["source"] for row in rows)).stdout
    assert said.splitlines() == [row["prediction"] for row in rows]
    done = command("score", finished_folder, "--seed", 1)
    assert done.returncode == 2 and done.stderr.startswith("error: --seed is of --mbr N")
    done = command("score", finished_folder, "--mbr", 4, "evaluation.metrics=[]")
    assert done.returncode == 2 and done.stderr.startswith("error: --mbr: no text is generated without evaluation.met")


def test_two_kinds_of_rows_need_two_files(command, finished_folder, tmp_path):
    done = command("score", finished_folder, "--per-row", tmp_path / "a", "--predictions", tmp_path / "b" / ".." / "a")
    assert done.returncode == 2 and "name a file for each" in done.stderr and not (tmp_path / "a").exists()


def test_metrics_that_a_checkpoint_names_are_not_run_unasked(command, finished_folder, tmp_path):
    code = tmp_path / "own" / "own.py"
    code.parent.mkdir()
    code.write_text(METRIC.format(str(code.with_name("was_run"))))
    config = finished_folder / "run.yaml"  # as somebody else may have published it
    config.write_text(config.read_text().replace("- exact_match", f"- {code.parent}"))
    (finished_folder / "manifest.json").unlink()
    done = command("score", finished_folder)
    assert done.returncode == 2 and "would run code; if you trust it, add --allow-metric-code" in done.stderr
    assert not code.with_name("was_run").exists()
    done = command("score", finished_folder, "--allow-metric-code")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["own"] == 8 and code.with_name("was_run").exists()
