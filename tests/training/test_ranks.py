"""What one process sees of what several do together; tests/test_launchers.py starts several."""

from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

from pipeline.errors import ConfigError, DataError, RunError
from pipeline.training import ranks
from pipeline.training.ranks import WriteError, fail_together, from_main_process, lost_peers_explained, together


def fail_with(error: Exception):
    def action():
        raise error

    return action


def test_the_result_of_the_main_process_comes_back():
    assert from_main_process(lambda: {"a": [1]}) == {"a": [1]}
    assert from_main_process(lambda: None) is None


def test_an_error_of_ours_passes():
    error = ConfigError("data.path: wrong")
    with pytest.raises(ConfigError) as raised:
        from_main_process(fail_with(error))
    assert raised.value is error


def test_a_bug_on_the_main_process_is_not_broadcast():
    with pytest.raises(ZeroDivisionError):
        from_main_process(lambda: 1 / 0)


def test_other_ranks_do_nothing_and_get_what_the_main_one_has(monkeypatch):
    """As `broadcast_object_list` fills in, in place."""
    monkeypatch.setattr(ranks.PartialState(), "process_index", 1)
    assert not ranks.PartialState().is_main_process
    done: list[None] = []
    for outcome in ("result", ConfigError("of rank 0")):
        monkeypatch.setattr(
            ranks, "broadcast_object_list", lambda outcomes, outcome=outcome: outcomes.__setitem__(0, outcome)
        )
        if isinstance(outcome, ConfigError):
            with pytest.raises(ConfigError, match="of rank 0"):
                from_main_process(lambda: done.append(None))
        else:
            assert from_main_process(lambda: done.append(None)) == "result"
    assert not done


def test_what_goes_well_is_done_once():
    done: list[None] = []
    fail_together(lambda: done.append(None))
    fail_together(lambda: done.append(None), main_only=True)
    assert len(done) == 2


def test_a_run_error_stays_what_it_is():
    error = RunError("the checkpoint is gone")
    with pytest.raises(RunError) as raised:
        fail_together(fail_with(error))
    assert raised.value is error


@pytest.mark.parametrize("error", [OSError(28, "No space left"), RuntimeError("write"), SafetensorError("IoError")])
def test_what_cannot_be_written_is_one_error(error):
    """Whichever library wrote it; the traceback is kept."""
    with pytest.raises(WriteError, match=r"No space left|write|IoError") as raised:
        fail_together(fail_with(error))
    assert raised.value.__cause__ is error and raised.value.exit_code == 3


def test_a_bug_is_no_write_error():
    with pytest.raises(TypeError, match="of ours"):
        fail_together(fail_with(TypeError("of ours")))


def test_all_ranks_raise_the_problem_of_one(monkeypatch):
    """This one did well, or has nothing to do; another one failed."""
    elsewhere = WriteError("no space on rank 1")
    monkeypatch.setattr(ranks, "gather_object", lambda mine: [*mine, elsewhere])
    with pytest.raises(WriteError, match="no space on rank 1"):
        fail_together(lambda: None)
    with pytest.raises(RunError, match="of this rank"):
        fail_together(fail_with(RunError("of this rank")))
    monkeypatch.setattr(ranks.PartialState(), "process_index", 1)
    with pytest.raises(WriteError, match="no space on rank 1"):
        fail_together(fail_with(AssertionError("it is not the main process")), main_only=True)


def test_what_fails_on_another_rank_fails_here(monkeypatch):
    """The own problem comes first; a bug keeps its traceback."""
    other = DataError("train.jsonl:7: bad")
    assert together(lambda: 5) == 5
    monkeypatch.setattr(ranks, "PartialState", lambda: SimpleNamespace(num_processes=2, device="cpu"))
    monkeypatch.setattr(ranks, "reduce", lambda flag: flag + 1)
    monkeypatch.setattr(ranks, "gather_object", lambda problems: [*problems, other])
    with pytest.raises(DataError, match=r"^train.jsonl:7: bad$"):
        together(lambda: 5)
    with pytest.raises(RunError, match=r"^own$"):
        together(fail_with(RunError("own")))
    monkeypatch.setattr(ranks, "reduce", lambda flag: flag)
    assert together(lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        together(lambda: 1 / 0)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer"),
        torch.distributed.DistBackendError("NCCL error: remote process exited"),
    ],
)
def test_a_process_that_is_gone_is_not_a_bug(error):
    with pytest.raises(RunError, match="another process of this run has ended"), lost_peers_explained():
        raise error
    with pytest.raises(RuntimeError, match=r"^a bug$"), lost_peers_explained():
        raise RuntimeError("a bug")
