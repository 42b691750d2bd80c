"""Micro-batching: items of many requests, answered together by one thread.

While the model answers one batch, what arrives waits for the next. Then the thread waits for those that were just
answered to ask again, no longer than `latency`: so they stay together with those that waited, and do not fall into two
groups that wait for each other; and a lone client waits for nobody. The oldest item decides which batch is next, so
none waits for ever.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import Any

from pipeline.errors import TeacherForcingError

SHORT = 64  # items up to this length are alike
TOGETHER = 20_000  # lengths of a batch, summed: it cannot be left once it runs, and a long text is many sentences
ALIKE = 4  # times as long: an item of a batch takes as many steps as the longest beside it


class Full(Exception):
    """There is no room for a request; it may come again."""


class Stopping(Exception):
    """Requests that come now are not taken any more."""


@dataclass
class Ask:
    """A request: its items, and the results that are there."""

    future: "Future[list[Any]]"
    missing: int
    results: list[Any]


@dataclass(frozen=True)
class Item:
    """One of the items of a request, which may be answered in several batches."""

    ask: Ask
    index: int
    group: Hashable
    content: Any
    length: int
    since: float  # seconds of `time.monotonic`


@dataclass
class Batcher:
    """Answers items on one thread, in batches.

    Args:
        answer: called on that thread with a group and the contents of items of it; returns their results in order.
        batch_size: items in a batch, at most.
        latency: seconds that items wait for others while the thread has nothing to do, at most.
        max_waiting: items that wait, at most.
        on_batch: called after each batch with the number of its items and the seconds that it took.
    """

    answer: Callable[[Any, Sequence[Any]], Sequence[Any]]
    batch_size: int
    latency: float
    max_waiting: int
    on_batch: Callable[[int, float], None] = lambda size, seconds: None
    _waiting: "deque[Item]" = field(default_factory=deque)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _is_stopping: bool = False
    _free_since: float = 0.0
    _expected: int = 0  # items that wait once those that were just answered have asked again

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    def submit(self, group: Hashable, contents: Sequence[Any], lengths: Sequence[int]) -> "Future[list[Any]]":
        """Let items be answered; a request is taken whole or not at all.

        Args:
            group: only items of equal groups share a batch.
            lengths: of the items; those of like length share a batch.

        Returns:
            The results in the order of the contents, or what `answer` raised. Once it is cancelled, its items that no
            batch has yet are left out.

        Raises:
            Full: where more items would wait than may.
            Stopping: after `stop`.
        """
        future: Future[list[Any]] = Future()
        ask = Ask(future, len(contents), [None] * len(contents))
        if not contents:
            future.set_result([])
            return future
        now = time.monotonic()
        items = [
            Item(ask, index, group, content, length, now)
            for index, (content, length) in enumerate(zip(contents, lengths, strict=True))
        ]
        with self._changed:
            if self._is_stopping:
                raise Stopping
            self._drop_cancelled()
            if len(self._waiting) + len(items) > self.max_waiting:
                raise Full
            self._waiting.extend(items)
            self._changed.notify()
        return future

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def is_stopping(self) -> bool:
        return self._is_stopping

    def stop(self) -> None:
        """Take no more, answer what was taken, and end the thread."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._take():
            begin = time.monotonic()
            self._answer(batch)
            self._free_since = time.monotonic()
            self._expected = len(batch) + len(self._waiting)
            self.on_batch(len(batch), self._free_since - begin)

    def _answer(self, batch: list[Item]) -> None:
        """Answer items, and let no request suffer from another in its batch.

        An error of the user's is that of settings, which all of them share. Any other, such as too little memory, ends
        only the request of an item that has it alone.
        """
        try:
            results = self.answer(batch[0].group, [item.content for item in batch])
            pairs = [*zip(batch, results, strict=True)]
        except Exception as error:  # whatever it is: it belongs to those who asked, not to this thread
            if len(batch) > 1 and not isinstance(error, TeacherForcingError):
                half = len(batch) // 2
                for part in (batch[:half], batch[half:]):
                    if rest := [item for item in part if not item.ask.future.done()]:
                        self._answer(rest)
                return
            for item in batch:
                _end(item.ask.future, error)
        else:
            for item, result in pairs:
                self._deliver(item, result)

    def _take(self) -> list[Item]:
        """Wait for the next batch; an empty one is the end."""
        with self._changed:
            while True:
                self._drop_cancelled()
                if not self._waiting:
                    if self._is_stopping:
                        return []
                    self._changed.wait()
                    continue
                oldest = self._waiting[0]
                batch = self._choose(oldest)
                left = max(oldest.since, self._free_since) + self.latency - time.monotonic()
                is_full = len(batch) == self.batch_size or len(self._waiting) >= self._expected
                if is_full or left <= 0 or self._is_stopping:
                    taken = {id(item) for item in batch}
                    self._waiting = deque(item for item in self._waiting if id(item) not in taken)
                    return batch
                self._changed.wait(left)

    def _choose(self, oldest: Item) -> list[Item]:
        alike = [*islice((item for item in self._waiting if _may_share(oldest, item)), self.batch_size)]
        totals = accumulate(item.length for item in alike)
        return [item for item, total in zip(alike, totals, strict=True) if item is oldest or total <= TOGETHER]

    def _drop_cancelled(self) -> None:
        """Forget items whose request is cancelled, or has an error already."""
        if any(item.ask.future.done() for item in self._waiting):
            self._waiting = deque(item for item in self._waiting if not item.ask.future.done())

    def _deliver(self, item: Item, result: Any) -> None:
        ask = item.ask
        ask.results[item.index] = result
        ask.missing -= 1
        if not ask.missing and not ask.future.done() and ask.future.set_running_or_notify_cancel():
            ask.future.set_result(ask.results)


def _may_share(first: Item, second: Item) -> bool:
    short, long = sorted(max(SHORT, item.length) for item in (first, second))
    return first.group == second.group and long <= ALIKE * short


def _end(future: "Future[list[Any]]", error: Exception) -> None:
    if not future.done() and future.set_running_or_notify_cancel():
        future.set_exception(error)
