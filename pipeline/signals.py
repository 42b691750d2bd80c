"""SIGTERM and SIGINT as a request to stop behind the step in hand, instead of an end in the middle of it."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl(2)


class StopRequest:
    """A context in which SIGTERM and SIGINT set `received` and do nothing else.

    Further ones change nothing: `torchrun` passes on a Ctrl-C that the terminal has sent to every process already.
    Ctrl-\\ (SIGQUIT) still ends a process at once. Outside the main thread Python allows no handlers: inert.
    """

    received: signal.Signals | None = None

    def __enter__(self) -> "StopRequest":
        self._handlers = {}
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._receive) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            os.write(2, b"\nstopping: the step in hand is finished and saved (Ctrl-\\ ends at once, without saving)\n")
        self.received = signal.Signals(number)


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt, as Ctrl-C does, so that what is half done is cleaned up."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def ignore_in_worker() -> None:
    """Ignore the stop signals in a loader worker.

    A terminal or a job scheduler sends them to workers too, and the trainer still needs those for the step in hand.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def begin_worker(_: int = 0) -> None:
    """Begin a loader worker: it ignores the stop signals, and ends when the trainer is killed (on Linux).

    By itself it would stay for good: torch's worker sees that its trainer is gone, but as it ends it waits until what
    it has sent is read, and a window is larger than a pipe.
    """
    ignore_in_worker()
    end_with_parent(signal.SIGKILL)
    trainer = multiprocessing.parent_process()
    if trainer is not None and os.getppid() != trainer.pid:  # killed before it could be followed
        os._exit(1)


def end_with_parent(number: signal.Signals) -> None:
    """Let this process be sent a signal when the thread that started it ends (on Linux; elsewhere nothing happens)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, number)


def is_launched_by_accelerate() -> bool:
    """Guess whether `accelerate launch` started this process: it says so nowhere, but always sets this variable.

    https://github.com/huggingface/accelerate/blob/v1.15.0/src/accelerate/utils/launch.py
    """
    return "ACCELERATE_MIXED_PRECISION" in os.environ


def stop_with_launcher() -> None:
    """Let `accelerate launch` of one process be stopped: it passes no signal on, and would leave us an orphan.

    https://github.com/huggingface/accelerate/blob/v1.15.0/src/accelerate/commands/launch.py (simple_launcher)
    """
    if is_launched_by_accelerate() and "LOCAL_RANK" not in os.environ:
        end_with_parent(signal.SIGTERM)
