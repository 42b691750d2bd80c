"""Batches collated here or by worker processes, which prepare windows of the lanes.

With one lane and two workers, worker n % 2 prepares window n, and they are asked in turn:

    worker 0    window 0    window 2    window 4 ...
    worker 1          window 1    window 3 ...
    trainer         batches of 0   of 1   of 2 ...

With as many lanes as workers or more, each worker has lanes of its own, and prepares their windows in the order in
which the batches are needed.

All that this project uses of torch's private names is in `WorkerWindows`, and listed in `PRIVATE_NAMES`.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from itertools import cycle
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from pipeline.data.batch_stream import LaneStream, Window
from pipeline.data.lanes import Lanes
from pipeline.data.rows import Feature
from pipeline.errors import DataError, RunError
from pipeline.signals import begin_worker

Batch = dict[str, torch.Tensor]

# Of _MultiProcessingDataLoaderIter. DataLoader's own error of a time-out is a RuntimeError like any other, and none of
# its public methods ends the workers. tests/data/test_batch_loader.py fails when torch renames one of these.
PRIVATE_NAMES = ("_try_get_data", "_workers", "_shutdown_workers")


class BatchLoader:
    """What Trainer iterates over: collated batches of this rank, and the positions of its lanes behind the one in use.

    It has no length, so Trainer only counts steps, and no step is cut short where a pass over the data ends.

    Args:
        lanes: what this rank trains on.
        num_workers: processes that read, encode and collate, each a window at a time; 0 does it here.
        prefetch_factor: windows that a worker prepares before they are asked for.
        timeout: seconds to wait for a window.
        pin_memory: batches lie where a GPU fetches them faster.

    Raises:
        DataError: the stream's own, from any worker.
        RunError: when a worker hangs, naming it.
    """

    def __init__(
        self,
        lanes: Lanes,
        collate: Callable[[list[Feature]], Batch],
        num_workers: int = 0,
        prefetch_factor: int = 1,
        timeout: int = 1200,
        pin_memory: bool = False,
    ):
        self.lanes, self.collate = lanes, collate
        self.num_workers, self.prefetch_factor, self.timeout = num_workers, prefetch_factor, timeout
        self.pin_memory = pin_memory

    @property
    def stream(self) -> LaneStream:
        """The stream of one lane, for what is the same in all of them."""
        return self.lanes.first

    def __iter__(self) -> Iterator[Batch]:
        self.lanes.restart()
        with ExitStack() as stack:
            for batch in self.lanes.batches(self._windows(stack)):
                if self.num_workers:
                    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
                else:
                    tensors = self.collate(batch)
                yield {name: tensor.pin_memory() for name, tensor in tensors.items()} if self.pin_memory else tensors

    def _windows(self, stack: ExitStack) -> dict[int, Iterator[Window]]:
        """Return the windows of each lane, made here or by workers, which end with the stack."""
        if not self.num_workers:
            streams = self.lanes.streams.items()
            return {lane: stack.enter_context(closing(stream.windows(stream.position))) for lane, stream in streams}
        useful = self.lanes.count_useful(self.num_workers)
        started = [stack.enter_context(closing(self._start(worker))) for worker in range(useful)]
        workers = [self._receive(items, worker) for worker, items in enumerate(started)]
        return {
            lane: _in_turn([workers[worker] for worker in self.lanes.workers_of(lane, self.num_workers)])
            for lane in self.lanes.streams
        }

    def _start(self, worker: int) -> "WorkerWindows":
        """Start a worker, and return the windows that it prepares, their batches collated."""
        loader = DataLoader(
            CollatedWindows(self.lanes, self.collate, worker, self.num_workers),
            batch_size=None,
            # A generator for this loader only: DataLoader draws a seed at its start, which would shift a resumed run's
            # dropout.
            generator=torch.Generator(),
            num_workers=1,
            prefetch_factor=self.prefetch_factor,
            timeout=self.timeout,
            worker_init_fn=begin_worker,
        )
        return WorkerWindows(loader)

    def _receive(self, items: "WorkerWindows", worker: int) -> Iterator[Window]:
        while True:
            try:
                window = next(items)
            except WorkerTimeout:
                behind = max(self.lanes.positions.values(), key=attrgetter("first_batch"))
                raise RunError(
                    f"loader worker {worker} of {self.num_workers} gave nothing in {self.timeout} "
                    f"seconds, after row {behind.first_row} of pass {behind.pass_index}; look at "
                    "what it reads, or raise data.worker_timeout"
                ) from None
            if isinstance(window, DataError):
                raise window
            yield window


def _in_turn(workers: list[Iterator[Window]]) -> Iterator[Window]:
    return (next(worker) for worker in cycle(workers))


class WorkerTimeout(Exception):
    """The worker whose turn it is gave nothing in time."""


class WorkerWindows(_MultiProcessingDataLoaderIter):
    """DataLoader's iterator over what its workers give, which has an end, and our own error for a time-out."""

    def __init__(self, loader: DataLoader):
        loader.check_worker_number_rationality()  # warns of more workers than cores, as iter(loader) does
        super().__init__(loader)

    def _try_get_data(self, timeout: float = 5.0) -> tuple[bool, Any]:
        """Wait for the next item; a loader with a time-out, as ours always is, asks once.

        Raises:
            WorkerTimeout: where DataLoader says (False, None), of which it makes a RuntimeError.
        """
        has_item, item = super()._try_get_data(timeout)
        if not has_item:
            raise WorkerTimeout
        return has_item, item

    def close(self) -> None:
        """End the workers now, as otherwise happens when this object is collected; kill those that hang."""
        self._shutdown_workers()
        for worker in self._workers:
            worker.kill()  # one that hangs hears of no end, and workers ignore SIGTERM
            worker.join()


class CollatedWindows(torch.utils.data.IterableDataset):
    """A worker's windows, collated; an error of the data is the last item, as DataLoader would garble it."""

    def __init__(self, lanes: Lanes, collate: Callable[[list[Feature]], Batch], worker: int, num_workers: int):
        self.lanes, self.collate, self.worker, self.num_workers = lanes, collate, worker, num_workers

    def __iter__(self) -> Iterator[Window | DataError]:
        try:
            for window in self.lanes.windows(self.worker, self.num_workers):
                window.batches = [self._to_arrays(batch) for batch in window.batches]
                yield window
        except DataError as error:
            yield error

    def _to_arrays(self, features: list[Feature]) -> dict[str, np.ndarray]:
        """Collate into arrays, as each tensor that is sent holds a file open until it is used."""
        return {name: tensor.numpy() for name, tensor in self.collate(features).items()}
