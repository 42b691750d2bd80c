import ast
import inspect
import os
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from itertools import islice
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from torch.utils.data import get_worker_info

from pipeline.data import batch_loader
from pipeline.data.batch_loader import PRIVATE_NAMES, BatchLoader, WorkerWindows
from pipeline.data.batch_stream import BatchStream
from pipeline.data.lanes import Lanes
from pipeline.data.rows import BadRow
from pipeline.errors import DataError, RunError
from pipeline.signals import begin_worker
from tests.conftest import ROOT
from tests.data.streams import KINDS, collate, encode, make_lanes, make_stream, take, take_loaded


@pytest.mark.parametrize("workers", [1, 2, 3])
@KINDS
def test_workers_change_nothing(kind, workers):
    loader = BatchLoader(make_lanes(kind), collate, num_workers=workers)
    assert take_loaded(loader, 90) == take(make_stream(kind), 90)  # over three ends of a pass
    assert not active_children()


@pytest.mark.parametrize("window", [30, 100])
@KINDS
def test_a_window_is_prepared_by_one_worker(kind, window, tmp_path):
    """And each worker prepares as many as the other, however many a pass has."""

    def note(columns):
        worker: Any = get_worker_info()
        with (tmp_path / "rows.txt").open("a") as file:
            file.write(f"{worker.dataset.worker} {len(columns['row'])}\n")
        return encode(columns)

    loader = BatchLoader(make_lanes(kind, encode=note, window=window), collate, num_workers=2)
    taken = sum(map(len, take_loaded(loader, 200)))
    notes = [line.split() for line in (tmp_path / "rows.txt").read_text().splitlines()]
    windows = Counter(worker for worker, _ in notes)
    assert {*windows} == {"0", "1"} and abs(windows["0"] - windows["1"]) <= 2
    # the window in use, two in work, two ready
    assert taken <= sum(int(rows) for _, rows in notes) <= taken + 5 * window * 1.1


@pytest.mark.parametrize("workers", [0, 2])
def test_no_rows_are_an_error(workers):
    rows = Dataset.from_dict({"value": []})
    stream = BatchStream(rows, encode, lambda each: each["lengths"], batch_rows=4)
    with pytest.raises(DataError, match="there are no training rows"):
        next(iter(BatchLoader(Lanes(lambda lane: stream), collate, num_workers=workers)))
    with pytest.raises(DataError, match="none of the 0 training rows can be used"):
        stream.count_batches()


@KINDS
@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_left_to_train_on(kind, workers):
    """The message is the same from a worker: it travels as it is."""
    lanes = make_lanes(
        kind, encode=lambda columns: [BadRow(f"row {row}", "too long") for row in columns["row"]], max_bad_rows=None
    )
    with pytest.raises(DataError, match=r"^none of the 100 training rows can be used; the last: row \d+: too long$"):
        next(iter(BatchLoader(lanes, collate, num_workers=workers)))


def test_a_hung_worker_is_named(monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)  # how long torch waits for its end

    def hang(columns):
        worker: Any = get_worker_info()
        if worker.dataset.worker == 1:
            time.sleep(60)
        return encode(columns)

    loader = BatchLoader(make_lanes("dataset", encode=hang), collate, num_workers=2, timeout=1)
    with pytest.raises(RunError, match=r"loader worker 1 of 2 gave nothing in 1 seconds, after row 30 of pass 0"):
        list(islice(iter(loader), 20))
    assert not active_children()


KILLED = """
import os, signal, torch
from multiprocessing import active_children
from pipeline.data.batch_loader import BatchLoader
from tests.data.streams import make_lanes

larger_than_a_pipe = {"input_ids": torch.zeros(1_000_000)}
batches = iter(BatchLoader(make_lanes("dataset"), lambda features: larger_than_a_pipe, num_workers=2))
next(batches)
print(*(worker.pid for worker in active_children()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_workers_end_with_a_killed_trainer():
    """They hold its output open, so it ends when the last of them does."""
    with subprocess.Popen([sys.executable, "-c", KILLED], cwd=ROOT, stdout=subprocess.PIPE, bufsize=0) as trainer:
        output = trainer.stdout
        assert output is not None
        workers = [int(number) for number in output.readline().split()]
        try:
            assert len(workers) == 2
            ended, *_ = select.select([output], [], [], 30)
            assert ended and output.read() == b""
        finally:
            for worker in workers:
                with suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_worker_whose_trainer_was_killed_at_its_start_ends(monkeypatch, is_gone):
    if is_gone:
        monkeypatch.setattr(os, "getppid", lambda: 1)  # that of an orphan
    worker = get_context("fork").Process(target=begin_worker)
    worker.start()
    worker.join(30)
    assert worker.exitcode == int(is_gone)


def test_an_error_that_speaks_of_time_is_no_time_out():
    """A worker's own error stays what it is, whatever its text."""

    def fail(columns):
        raise RuntimeError("the request timed out")

    loader = BatchLoader(make_lanes("dataset", encode=fail), collate, num_workers=2)
    with pytest.raises(RuntimeError, match="the request timed out"):
        next(iter(loader))
    assert not active_children()


def test_torchs_private_names_are_there_and_called(monkeypatch):
    """When this fails, torch has changed what `WorkerWindows` overrides or uses: a hung worker would not be noticed."""
    torchs = WorkerWindows.__mro__[1]
    calls: Counter[str] = Counter()

    def count(name, parameters):
        original = getattr(torchs, name)
        assert list(inspect.signature(original).parameters) == parameters

        def counted(*args):
            calls[name] += 1
            return original(*args)

        monkeypatch.setattr(torchs, name, counted)

    count("_try_get_data", ["self", "timeout"])
    count("_shutdown_workers", ["self"])
    started: list[bool] = []
    close = WorkerWindows.close

    def note_workers(windows):
        started.extend(worker.is_alive() for worker in windows._workers)
        close(windows)

    monkeypatch.setattr(WorkerWindows, "close", note_workers)
    take_loaded(BatchLoader(make_lanes("dataset"), collate, num_workers=2), 20)
    assert calls["_try_get_data"] >= 2 and calls["_shutdown_workers"] >= 1 and started == [True, True]


def test_all_private_names_are_in_the_list():
    """Those that begin with an underscore, and that no class of the module defines itself."""
    tree = ast.parse(Path(batch_loader.__file__).read_text(encoding="utf-8"))
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr.startswith("_")}
    own = {
        node.name
        for definition in tree.body
        if isinstance(definition, ast.ClassDef) and definition.name != "WorkerWindows"
        for node in definition.body
        if isinstance(node, ast.FunctionDef)
    }
    assert {name for name in used - own if not name.startswith("__")} == set(PRIVATE_NAMES)
