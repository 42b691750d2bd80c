"""What the processes of one run do together."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, reduce
from safetensors import SafetensorError

from pipeline.errors import RunError, TeacherForcingError

# In the plain RuntimeErrors of gloo; NCCL has a class of its own.
GLOO = "gloo/transport"
# Raised in whatever runs when a loader's worker ends, as a plain RuntimeError too:
# https://github.com/pytorch/pytorch/blob/v2.11.0/torch/csrc/DataLoader.cpp
LOST_WORKER = "DataLoader worker (pid"

Result = TypeVar("Result")


class WriteError(RunError):
    """A file that could not be written on one of the ranks; the message is the operating system's or a library's."""


def must_join_on_cpu() -> bool:
    """Whether several processes were started where there is no accelerator.

    Each of them stays alone then, unless accelerate is told to use the CPU.
    https://github.com/huggingface/accelerate/blob/v1.15.0/src/accelerate/state.py (_prepare_backend)
    """
    return os.environ.get("WORLD_SIZE", "1") != "1" and not has_accelerator()


def has_accelerator() -> bool:
    """Whether there is a device for training besides the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) is not None


def fail_together(action: Callable[[], Any], main_only: bool = False) -> None:
    """Do something that writes files on every rank, or only on the main one, and wait for all ranks.

    A rank that failed alone would leave the others waiting for it in the next collective operation, until that times
    out with a message about the network. So the ranks tell each other how it went, and all raise the first problem.

    Raises:
        RunError: on every rank, when `action` raised it on any of them, or a loader's worker ended meanwhile.
        WriteError: on every rank, when a file could not be written on any of them.
    """
    problem: RunError | None = None
    if PartialState().is_main_process or not main_only:
        try:
            action()
        except RunError as error:
            problem = error
        except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have their own errors
            problem = (RunError if str(error).startswith(LOST_WORKER) else WriteError)(str(error))
            problem.__cause__ = error  # the traceback of this rank; the others get the message
    problems = [other for other in gather_object([problem]) if other is not None]
    if problems:
        raise problem or problems[0]


def together(action: Callable[[], Result]) -> Result:
    """Do something on every rank, and return its result here.

    Raises:
        TeacherForcingError: on every rank, what `action` raised of our own errors on this one, or else on any other. A
            rank that ended alone would leave the others waiting for it.
    """
    problem: TeacherForcingError | None = None
    result: Any = None
    try:
        result = action()
    except TeacherForcingError as error:
        problem = error
    state = PartialState()
    if state.num_processes > 1 and reduce(torch.tensor(float(problem is not None), device=state.device)).item():
        problems = [other for other in gather_object([problem]) if other is not None]
        problem = problem or problems[0]
    if problem is not None:
        raise problem
    return result


@contextmanager
def lost_peers_explained() -> Iterator[None]:
    """Say where another process of the run has ended, which is the one that says why.

    Raises:
        RunError: in place of the error of the network, which stays its cause.
    """
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.distributed.DistError) or GLOO in str(error)):
            raise
        raise RunError(
            "another process of this run has ended, and its message says why; the same command goes on from the newest "
            "checkpoint, where there is one"
        ) from error


def from_main_process(action: Callable[[], Result]) -> Result:
    """Do something on the main process, and give its result to every rank.

    Raises:
        TeacherForcingError: on every rank, what `action` raised of our own errors.
    """
    outcome: list[Any] = [None]
    if PartialState().is_main_process:
        try:
            outcome = [action()]
        except TeacherForcingError as error:
            outcome = [error]
    broadcast_object_list(outcome)
    if isinstance(outcome[0], TeacherForcingError):
        raise outcome[0]
    return outcome[0]
