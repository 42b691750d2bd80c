"""What a training logs, evaluates and keeps, and how it goes on after it was killed."""

import json
from contextlib import redirect_stderr
from io import StringIO

import pytest
import torch
from transformers import TrainerControl, TrainerState

from pipeline.errors import ConfigError, DataError, RunError
from pipeline.run import train
from pipeline.training.trainer import TeacherForcingTrainer, TrainingBar
from tests.conftest import Terminal
from tests.training.conftest import LONG, assert_equal, history, output_dir, weights


def test_killed_between_last_step_and_result(make_config, reference, monkeypatch):
    """No step is done twice, nor one more."""
    config = make_config(training=LONG)
    monkeypatch.setattr("pipeline.run.finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train(config)
    monkeypatch.undo()
    assert_equal(train(config).output_dir, reference)


def test_a_damaged_best_model_is_not_taken(make_config, monkeypatch):
    training = {"max_steps": 4, "load_best_model_at_end": True, "metric_for_best_model": "loss"}
    config = make_config(training={**training, "learning_rate": 3.0})
    original = TeacherForcingTrainer.should_load_best_model

    def harm(self):
        path = output_dir(config) / f"checkpoint-{self.state.best_global_step}" / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        return original(self)

    monkeypatch.setattr(TeacherForcingTrainer, "should_load_best_model", harm)
    with pytest.raises(RunError, match=r"the best checkpoint, is damaged: model.safetensors was changed"):
        train(config)


def test_the_best_model_is_found_in_a_folder_that_moved(make_config, tmp_path):
    training: dict[str, object] = {"learning_rate": 3.0, "warmup_steps": 4, "max_steps": 6}
    training |= {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
    folder = train(make_config(training=training)).output_dir
    expected = weights(folder)
    moved = tmp_path / "moved"
    folder.rename(moved)
    (moved / "metrics.json").unlink()
    (moved / "model.safetensors").unlink()
    assert_equal(train(make_config(training={**training, "output_dir": str(moved)})).output_dir, expected)


@pytest.mark.parametrize(
    "streaming, workers",
    [(True, 2), *(pytest.param(*other, marks=pytest.mark.slow) for other in ((False, 0), (True, 0), (False, 2)))],
)
def test_bad_rows_in_training(make_config, make_pairs, streaming, workers):
    """Named by file and line, or skipped and counted in the metrics."""
    folder = make_pairs(rows=40)
    bad = [b'{"source": "a", "target": null}', b'{"source": 3, "target": "a"}', b'{"source": " ", "target": "a"}']
    bad += [b'{"target": "a"}', b'{"source": "a b c", "target": "a b', b'{"source": "\xff", "target": "a"}']
    bad += [b'{"source": "%s", "target": "a"}' % b" ".join([b"a"] * 40)]
    with (folder / "train.jsonl").open("ab") as stream:
        stream.write(b"\n".join(bad) + b"\n")
    data = {"path": str(folder), "options": {}, "streaming": streaming, "max_source_length": 20, "shuffle_window": 8}
    training = {"max_steps": 7, "eval_strategy": "no", "dataloader_num_workers": workers}
    with pytest.raises(DataError, match=r"train.jsonl:4\d: .*; fix or remove the row, or set data.on_bad_row=skip"):
        train(make_config(data=data, training=training))
    result = train(make_config(data={**data, "on_bad_row": "skip"}, training=training))
    assert result.scores["training"]["skipped_rows"] >= len(bad)
    metrics = json.loads((result.output_dir / "metrics.json").read_text())
    assert metrics["training"] == result.scores["training"]
    with pytest.raises(DataError, match=r"7 bad rows in one pass, where data.max_bad_rows=6; one: .*train.jsonl:4\d: "):
        folder = str(result.output_dir) + "-2"
        train(make_config(data={**data, "on_bad_row": "skip", "max_bad_rows": 6, "shuffle_window": 100},
                        training={**training, "output_dir": folder}))  # fmt: skip


@pytest.mark.parametrize("streaming", [pytest.param(False, marks=pytest.mark.slow), True])
def test_bad_rows_are_counted_over_all_lanes(make_config, make_pairs, streaming):
    """Two of the eight in each of four lanes, or so, in a stream of one file that they share."""
    folder = make_pairs(rows=40)
    with (folder / "train.jsonl").open("a") as stream:
        stream.write('{"source": "a"}\n' * 8)
    data = {"path": str(folder), "options": {}, "streaming": streaming, "lanes": 4, "on_bad_row": "skip"}
    training = {"max_steps": 8, "eval_strategy": "no"}
    assert train(make_config(data=data, training=training)).scores["training"]["skipped_rows"] >= 8
    with pytest.raises(DataError, match=r"8 bad rows in one pass, where data.max_bad_rows=7"):
        training |= {"output_dir": str(folder / "again")}
        train(make_config(data={**data, "max_bad_rows": 7}, training=training))


def test_changed_settings_are_applied_from_the_resume_point_on(make_config, unfinished):
    """Trainer would take all of them from the checkpoint."""
    training = {**LONG, "max_steps": 10, "learning_rate": 0.5, "lr_scheduler_type": "constant", "adam_beta1": 0.5}
    training |= {"weight_decay": 0.3, "save_steps": 1}
    result = train(make_config(training=training, model={"dropout": 0.25}), accept_changes=True)
    rates = [log["learning_rate"] for log in history(result.output_dir, 10) if "learning_rate" in log]
    assert rates[-2:] == [0.5, 0.5] and max(rates[:-2]) < 0.5
    assert (result.output_dir / "checkpoint-9").is_dir()
    (decayed, *_) = torch.load(result.output_dir / "checkpoint-10" / "optimizer.pt")["param_groups"]
    assert (decayed["lr"], decayed["betas"][0], decayed["weight_decay"]) == (0.5, 0.5, 0.3)
    assert json.loads((result.output_dir / "config.json").read_text())["dropout"] == 0.25
    for name in ("run.yaml", "README.md"):
        text = (result.output_dir / name).read_text()
        assert (
            "from step 9 on: training.learning_rate: 0.5 (before: null)" in text and "on: model.dropout: 0.25" in text
        )
    assert train(make_config(training=training, model={"dropout": 0.25})).was_finished


def test_a_setting_that_would_not_be_used_is_not_claimed(make_config, undisturbed, unfinished):
    with pytest.raises(ConfigError, match=r"training.learning_rate: the run has made all of its 8 steps"):
        train(make_config(training={**LONG, "learning_rate": 0.5}), accept_changes=True)
    assert (unfinished / "run.yaml").read_text() == (undisturbed / "run.yaml").read_text()


@pytest.mark.slow
def test_other_data_are_read_from_their_first_row_on(make_config, make_pairs):
    folder = make_pairs(rows=40)
    data = {"path": str(folder), "options": {}}
    training = {**LONG, "max_steps": 3}
    config = make_config(data=data, training={**training, "save_steps": 3})
    train(config)
    (folder / "train.jsonl").write_text('{"source": "a b", "target": "b a"}\n' * 16)
    longer = make_config(data=data, training={**training, "save_steps": 1, "max_steps": 5})
    with pytest.raises(ConfigError, match=r"other settings \(training.max_steps\)"):
        train(longer)
    result = train(longer, accept_changes=True)
    position = json.loads((result.output_dir / "checkpoint-4" / "run_state.json").read_text())["data"]
    (lane,) = position["lanes"]
    assert (position["next_batch"], lane["pass_index"], lane["first_row"], lane["epoch"]) == (4, 1, 0, 1.5)
    assert "the content of data.train: " in (result.output_dir / "README.md").read_text()


@pytest.mark.slow
def test_a_changed_patience_is_that_of_the_config(make_config):
    training = {"max_steps": 4, "load_best_model_at_end": True, "metric_for_best_model": "loss", "learning_rate": 1e-9}
    train(make_config(training=training, evaluation={"early_stopping_patience": 5}))
    training |= {"max_steps": 40}
    folder = train(
        make_config(training=training, evaluation={"early_stopping_patience": 1}), accept_changes=True
    ).output_dir
    assert max(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*")) < 10


@pytest.mark.parametrize("stream, is_shown", [(Terminal(), True), (StringIO(), False)])
def test_the_bar_counts_from_where_a_run_goes_on(capsys, stream, is_shown):
    """And the log lines come whether it is shown or not."""
    bar, state, control = TrainingBar(), TrainerState(max_steps=10, global_step=4), TrainerControl()
    with redirect_stderr(stream):
        bar.on_train_begin(None, state, control)
        state.global_step = 5
        bar.on_step_end(None, state, control)
        bar.on_log(None, state, control, {"loss": 0.5})
        bar.on_train_end(None, state, control)
    assert capsys.readouterr().out == "{'loss': '0.5'}\n"
    assert ("training:  40%" in stream.getvalue() and "5/10" in stream.getvalue()) == is_shown
    assert is_shown or not stream.getvalue()
