"""Batches collated here or by worker processes, which prepare windows of a stream in turn."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import asdict
from itertools import count
from multiprocessing import active_children
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, get_worker_info

from pipeline.data.batch_stream import BatchStream, Feature, Position, Window
from pipeline.errors import DataError, RunError
from pipeline.signals import ignore_in_worker

Batch = dict[str, torch.Tensor]


class BatchLoader:
    """What Trainer iterates over: collated batches of a `BatchStream`, and the position behind the one in use.

    It has no length: Trainer then counts steps alone, so no step is cut short where a pass over the data ends.

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
        return asdict(self.position)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stream.position = Position(**state)

    def __iter__(self) -> Iterator[Batch]:
        windows = self._of_workers() if self.num_workers else self.stream.windows(self.position)
        with closing(windows):
            for batch, position in self.stream.batches(windows):
                if self.num_workers:
                    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
                else:
                    tensors = self.collate(batch)
                self.stream.position = position
                yield {name: tensor.pin_memory() for name, tensor in tensors.items()} if self.pin_memory else tensors

    def _of_workers(self) -> Generator[Window]:
        """The windows, with collated batches, in the order of the stream: DataLoader asks its workers in turn."""
        others = set(active_children())
        items: Any = iter(
            DataLoader(
                _Windows(self.stream, self.collate),
                batch_size=None,
                # Of its own: DataLoader draws a seed at its start, which would shift a resumed run's dropout.
                generator=torch.Generator(),
                num_workers=self.num_workers,
                prefetch_factor=self.prefetch_factor,
                timeout=self.timeout,
                worker_init_fn=ignore_in_worker,
            )
        )
        workers = set(active_children()) - others
        try:
            for turn in count():
                window = self._next(items, turn)
                if isinstance(window, Exception):
                    raise window
                yield window
        finally:
            items._shutdown_workers()  # as when DataLoader's iterator is collected, but now
            for worker in workers:
                worker.kill()  # one that hangs does not hear of the end
                worker.join()

    def _next(self, items: Iterator, turn: int) -> Any:
        try:
            return next(items)
        except RuntimeError as error:
            if "timed out" not in str(error):
                raise
        raise RunError(
            f"loader worker {turn % self.num_workers} of {self.num_workers} gave nothing in {self.timeout} seconds, "
            f"after row {self.position.first_row} of pass {self.position.number}; look at what it reads, or raise "
            "data.worker_timeout"
        )


class _Windows(torch.utils.data.IterableDataset):
    """A worker's windows, collated; an error of the data is the last item, as DataLoader would garble it."""

    def __init__(self, stream: BatchStream, collate: Callable[[list[Feature]], Batch]):
        self.stream, self.collate = stream, collate

    def __iter__(self) -> Iterator[Window | DataError]:
        worker = get_worker_info()
        assert worker is not None
        try:
            for window in self.stream.windows(self.stream.position, worker.id, worker.num_workers):
                window.batches = [self._arrays(batch) for batch in window.batches]
                yield window
        except DataError as error:
            yield error

    def _arrays(self, features: list[Feature]) -> dict[str, np.ndarray]:
        """Arrays, as each tensor that is sent holds a file open until it is used."""
        return {name: tensor.numpy() for name, tensor in self.collate(features).items()}
