"""Batches collated here or by worker processes, which prepare windows of a stream in turn.

With two workers, worker n % 2 prepares window n, and DataLoader asks them in turn, so the windows arrive in order:

    worker 0    window 0    window 2    window 4 ...
    worker 1          window 1    window 3 ...
    trainer         batches of 0   of 1   of 2 ...

All that this project uses of torch's private names is in `WorkerWindows`, and listed in `PRIVATE_NAMES`.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import asdict
from itertools import count
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from pipeline.data.batch_stream import BatchStream, Position, Window
from pipeline.data.rows import Feature
from pipeline.errors import DataError, RunError
from pipeline.signals import ignore_in_worker

Batch = dict[str, torch.Tensor]

# Of _MultiProcessingDataLoaderIter. DataLoader's own error of a time-out is a RuntimeError like any other, and none of
# its public methods ends the workers. tests/data/test_batch_loader.py fails when torch renames one of these.
PRIVATE_NAMES = ("_try_get_data", "_workers", "_shutdown_workers")


class BatchLoader:
    """What Trainer iterates over: collated batches of a `BatchStream`, and the position behind the one in use.

    It has no length, so Trainer only counts steps, and no step is cut short where a pass over the data ends.

    Args:
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
        stream: BatchStream,
        collate: Callable[[list[Feature]], Batch],
        num_workers: int = 0,
        prefetch_factor: int = 1,
        timeout: int = 1200,
        pin_memory: bool = False,
    ):
        self.stream, self.collate = stream, collate
        self.num_workers, self.prefetch_factor, self.timeout = num_workers, prefetch_factor, timeout
        self.pin_memory = pin_memory

    @property
    def position(self) -> Position:
        return self.stream.position

    def state_dict(self) -> dict[str, Any]:
        """Return the position, for a checkpoint."""
        return asdict(self.position)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at the position of a checkpoint."""
        self.stream.position = Position.from_dict(state)

    def __iter__(self) -> Iterator[Batch]:
        windows = self._windows_of_workers() if self.num_workers else self.stream.windows(self.position)
        with closing(windows):
            for batch, position in self.stream.batches(windows):
                if self.num_workers:
                    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
                else:
                    tensors = self.collate(batch)
                self.stream.position = position
                yield {name: tensor.pin_memory() for name, tensor in tensors.items()} if self.pin_memory else tensors

    def _windows_of_workers(self) -> Generator[Window]:
        """Yield the windows in the order of the stream, their batches collated."""
        loader = DataLoader(
            CollatedWindows(self.stream, self.collate),
            batch_size=None,
            # A generator for this loader only: DataLoader draws a seed at its start, which would shift a resumed run's
            # dropout.
            generator=torch.Generator(),
            num_workers=self.num_workers,
            prefetch_factor=self.prefetch_factor,
            timeout=self.timeout,
            worker_init_fn=ignore_in_worker,
        )
        with closing(WorkerWindows(loader)) as windows:
            for turn in count():
                try:
                    window = next(windows)
                except WorkerTimeout:
                    raise RunError(
                        f"loader worker {turn % self.num_workers} of {self.num_workers} gave nothing in {self.timeout} "
                        f"seconds, after row {self.position.first_row} of pass {self.position.pass_index}; look at "
                        "what it reads, or raise data.worker_timeout"
                    ) from None
                if isinstance(window, DataError):
                    raise window
                yield window


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

    def __init__(self, stream: BatchStream, collate: Callable[[list[Feature]], Batch]):
        self.stream, self.collate = stream, collate

    def __iter__(self) -> Iterator[Window | DataError]:
        worker = get_worker_info()
        assert worker is not None
        try:
            for window in self.stream.windows(self.stream.position, worker.id, worker.num_workers):
                window.batches = [self._to_arrays(batch) for batch in window.batches]
                yield window
        except DataError as error:
            yield error

    def _to_arrays(self, features: list[Feature]) -> dict[str, np.ndarray]:
        """Collate into arrays, as each tensor that is sent holds a file open until it is used."""
        return {name: tensor.numpy() for name, tensor in self.collate(features).items()}
