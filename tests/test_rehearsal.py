"""What a rehearsal finds before the first step, and that nothing of it stays."""

import json
import random
import shutil
from collections import namedtuple
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from pipeline import rehearsal, run
from pipeline.errors import ConfigError, DataError, RunError
from pipeline.rehearsal import Finding, SeenRows, largest_batches, raise_errors, random_states_kept
from pipeline.run import train
from tests.conftest import write_config


@pytest.fixture
def rehearse(make_config, no_step):
    """Rehearses the run of a small config; keyword arguments are section=dict."""

    def call(**changes):
        return train(make_config(**changes), dry_run=True).findings

    return call


def of(findings, status: str) -> str:
    return "\n".join(f"{finding.check}: {finding.text}" for finding in findings if finding.status == status)


def test_a_good_run_has_nothing_to_complain_of(rehearse, tmp_path):
    findings = rehearse()
    assert {finding.status for finding in findings} == {"ok"}
    assert {finding.check for finding in findings} == set(rehearsal.CHECKS)
    assert "the largest batch, 8 rows of 128 + 128 tokens" in of(findings, "ok")
    assert not list((tmp_path / "run").glob(".rehearsal*")) and not list((tmp_path / "run").glob("checkpoint*"))


@pytest.mark.parametrize("task", ["language_modeling", "text_classification", "forecasting"])
def test_every_task_can_be_rehearsed(rehearse, task, tmp_path):
    for split, words in (("train", "so {} on"), ("validation", "on {} so")):
        rows = [{"source": words.format(n % 7), "target": "ab"[n % 2], "load": n % 7} for n in range(64)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes: dict[str, Any] = {"data": {"path": str(tmp_path), "options": {}, "test": None}, "generation": {}}
    if task == "forecasting":
        sizes = {"context_length": 8, "prediction_length": 4, "patch_length": 4, "patch_stride": 2}
        changes |= {"forecasting": {"series": ["load"]}, "model": sizes}
    findings = rehearse(task=task, **changes)
    assert {finding.status for finding in findings} == {"ok"}, findings
    assert {"training rows", "memory and time", "evaluation", "saving"} <= {finding.check for finding in findings}


@pytest.mark.parametrize(
    "training",
    [
        {},
        *(
            pytest.param(more, marks=pytest.mark.slow)
            for more in ({"gradient_checkpointing": True}, {"bf16": True, "use_cpu": True})
        ),
    ],
)
def test_nothing_of_it_stays(make_config, monkeypatch, tmp_path, training):
    """Weights, optimizer and scores are those of the same run without rehearsal."""
    folders = []
    for name, checks in (("with", dict(rehearsal.CHECKS)), ("without", {})):
        monkeypatch.setattr(rehearsal, "CHECKS", checks)
        config = make_config(training={**training, "output_dir": str(tmp_path / name)}, model={"dropout": 0.3})
        folders.append(train(config).output_dir)
    for file in ("model.safetensors", "metrics.json", "checkpoint-4/optimizer.pt", "checkpoint-4/run_state.json"):
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes(), file


def test_random_numbers_stay():
    def draw():
        return random.random(), float(np.random.random()), float(torch.rand(1))

    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    with random_states_kept():
        first = draw()
    assert draw() == first


def test_a_run_that_goes_on_is_not_rehearsed(make_config, monkeypatch, finished_folder):
    (finished_folder / "metrics.json").unlink()
    monkeypatch.setattr(run, "rehearse", lambda scene: pytest.fail("it was rehearsed"))
    train(make_config())


def test_a_bad_row_of_the_test_split_is_named_before_training(make_config, make_pairs, no_step):
    folder = make_pairs()
    with (folder / "test.jsonl").open("a") as stream:
        print(json.dumps({"source": "a", "target": None}), file=stream)
    with pytest.raises(DataError, match=r"data: test: .*test.jsonl:7: target is None"):
        train(make_config(data={"path": str(folder), "options": {}}))


def test_a_bad_training_row_among_the_first_is_found(rehearse, make_pairs):
    folder = make_pairs()
    with (folder / "train.jsonl").open("a") as stream:
        print(json.dumps({"source": "a", "target": ""}), file=stream)
    findings = rehearse(data={"path": str(folder), "options": {}})
    assert "train.jsonl:41: target is empty" in of(findings, "error")
    assert "saving" in of(findings, "ok"), "the other checks are done all the same"


def test_copies_of_training_rows_in_the_test_split_are_found(rehearse, make_pairs):
    folder = make_pairs()
    train_lines = (folder / "train.jsonl").read_text().splitlines(keepends=True)
    (folder / "test.jsonl").write_text("".join([*train_lines[:3], '{"source": "new a", "target": "a new"}\n']))
    warning = of(rehearse(data={"path": str(folder), "options": {}}), "warning")
    assert "held-out rows: test: 3 of 4 rows are among the training rows" in warning


def test_copies_are_found_where_the_tokenizer_is_not_trained(rehearse, make_pairs, finished_run):
    folder = make_pairs()
    (folder / "train.jsonl").write_text('{"source": "1 2", "target": "2 1"}\n' * 9)
    (folder / "validation.jsonl").write_text('{"source": "1 2", "target": "2 1"}\n')
    data: dict[str, Any] = {"path": str(folder), "options": {}, "test": None}
    warning = of(rehearse(data=data, tokenizer={"path": str(finished_run)}), "warning")
    assert "validation: 1 of 1 rows are among the training rows" in warning


def test_seen_rows_of_one_running_text_are_not_counted():
    seen = SeenRows(())
    assert list(seen.watch([{"source": "a"}])) == [{"source": "a"}] and not seen.find([{"source": "a"}])


def test_unknown_tokens_are_told(rehearse, make_pairs):
    folder = make_pairs()
    (folder / "validation.jsonl").write_text('{"source": "a x y", "target": "y x a"}\n' * 3)
    warning = of(rehearse(data={"path": str(folder), "options": {}}), "warning")
    assert "unknown to the tokenizer" in warning and "tokenizer.vocab_size" in warning


def test_a_metric_that_fails_is_an_error(make_config, monkeypatch, no_step):
    def broken(predictions, references):
        raise ValueError("it wants\nother texts")

    monkeypatch.setattr(run, "load_metrics", lambda settings: [broken])
    with pytest.raises(ConfigError, match="generation or evaluation as configured fails: it wants other texts"):
        train(make_config(evaluation={"metrics": ["exact_match"]}))


def test_a_batch_that_does_not_fit_is_an_error(rehearse, make_pairs, monkeypatch):
    """First that of the longest rows that there may be, then that of those that there are."""
    data = {"path": str(make_pairs()), "options": {}}
    monkeypatch.setattr(rehearsal, "measure_step", lambda scene, batch: (1.0, len(batch) * 1000))
    needs = []
    for room in (10**9, 400_000, 1):
        monkeypatch.setattr(rehearsal, "available_memory", lambda device, room=room: room)
        findings = rehearse(data=data)
        needs.append([f for f in findings if f.check == "memory and time" and f.status != "ok"])
    assert not needs[0]
    assert [finding.status for finding in needs[2]] == ["error"] and isinstance(needs[2][0].error, RunError)
    text = needs[2][0].text
    assert "training.gradient_checkpointing=true" in text and "training.per_device_train_batch_size below 8" in text
    findings = rehearse(data={**data, "batch_tokens": 1024})
    assert "data.batch_tokens below 1024" in of(findings, "error")


def test_a_large_batch_is_not_run_on_a_cpu(rehearse, monkeypatch):
    """Of the rows that were read, only some are tried."""
    measured = Mock(wraps=rehearsal.measure_step)
    monkeypatch.setattr(rehearsal, "measure_step", measured)
    monkeypatch.setattr(rehearsal, "TRIED_TOKENS", 30)
    rehearse()
    assert len(measured.call_args_list[0].args[1]) < 8


def test_the_largest_batch_is_bounded_by_the_rows_that_there_are(make_config, make_pairs, monkeypatch):
    rehearsed = Mock(return_value=[])
    monkeypatch.setattr(run, "rehearse", rehearsed)
    train(make_config(data={"path": str(make_pairs(rows=5)), "options": {}, "batch_tokens": 10**9}), dry_run=True)
    (scene,) = rehearsed.call_args.args
    next(iter(rehearsal.CHECKS.values()))(scene).__next__()
    assert [len(batch) for batch in largest_batches(scene)] == [5, 5]


def test_a_disk_that_is_too_small_is_found(rehearse, monkeypatch):
    usage = namedtuple("usage", "total used free")
    usual = shutil.disk_usage
    for free, status in ((1, "error"), (600_000, "warning")):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage(*usual(path)[:2], free))
        findings = rehearse(training={"save_steps": 1, "eval_steps": 1})
        assert "4 checkpoints of" in of(findings, status), findings[-1]


def test_a_model_that_does_not_load_as_saved_is_found(rehearse, monkeypatch):
    from pipeline.models.modeling_seq2seq import Seq2SeqTransformerForConditionalGeneration as Model

    load = Model.from_pretrained

    def changed(folder):
        model = load(folder)
        next(model.parameters()).data += 1
        return model

    monkeypatch.setattr(Model, "from_pretrained", changed)
    assert "is not what was saved" in of(rehearse(), "error")


def test_the_worst_error_decides():
    ok, mine = Finding("ok", "fine"), Finding("error", "a key", error=DataError("a key"))
    machine = Finding("error", "the disk", error=RunError("the disk"))
    raise_errors([ok, Finding("warning", "look")])
    with pytest.raises(DataError, match=r"^a key$"):
        raise_errors([ok, mine])
    with pytest.raises(RunError, match=r"^the disk \(1 more: --dry-run lists all\)$"):
        raise_errors([mine, machine])


def test_the_report_of_a_dry_run(command, make_config, tmp_path, no_step, monkeypatch):
    config = write_config(make_config, tmp_path / "config.yaml")
    done = command("train", config, "--dry-run")
    assert done.returncode == 0 and "ok       evaluation" in done.stdout and not done.stderr.count("error")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 0))
    done = command("train", config, "--dry-run")
    assert done.returncode == 3 and "error    saving" in done.stdout and done.stderr.startswith("error: ")
