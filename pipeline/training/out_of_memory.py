"""A training that needs more memory than there is: one line that says what to change, in place of a traceback."""

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import TrainingArguments

from pipeline.errors import RunError
from pipeline.training.checkpoints import list_checkpoints
from pipeline.training.ranks import LOST_WORKER

# The CPU's allocator raises a plain RuntimeError, which only its name tells from others:
# https://github.com/pytorch/pytorch/blob/v2.11.0/c10/core/impl/alloc_cpu.cpp
CPU_ALLOCATOR = "DefaultCPUAllocator"


@contextmanager
def out_of_memory_explained(output_dir: Path, changes: Sequence[str], new_run: Sequence[str] = ()) -> Iterator[None]:
    """Name the settings to change, and the checkpoint to go on from, where memory ends what is done inside.

    Nothing is saved here, and a checkpoint appears by one rename, so the last one is as whole as it was.

    Args:
        changes: settings that need less memory, and may change while a run goes on.
        new_run: those that may not.

    Raises:
        RunError: in place of the allocator's error, which stays its cause.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        checkpoint = next(iter(list_checkpoints(output_dir)), None)
        detail = textwrap.shorten(str(error).partition("\n")[0], 200, placeholder=" ...") or type(error).__name__
        raise RunError(f"out of memory: {advice(checkpoint, changes, new_run)} (the allocator: {detail})") from error


def is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or CPU_ALLOCATOR in str(error)


@contextmanager
def lost_worker_explained(output_dir: Path) -> Iterator[None]:
    """Name the checkpoint to go on from where a loader worker was killed, as the kernel does where memory ends.

    Raises:
        RunError: in place of DataLoader's error, which stays its cause.
    """
    try:
        yield
    except (RuntimeError, RunError) as error:
        if not str(error).startswith(LOST_WORKER):
            raise
        checkpoint = next(iter(list_checkpoints(output_dir)), None)
        begin = "begins anew" if checkpoint is None else f"goes on from {checkpoint}"
        raise RunError(
            f"a loader worker was lost ({error}); the kernel kills processes where memory ends: the same command "
            f"{begin}, and needs less memory with fewer training.dataloader_num_workers"
        ) from error


def advice(checkpoint: Path | None, changes: Sequence[str], new_run: Sequence[str]) -> str:
    """Say what to do, where a run can go on and where it cannot."""
    if not changes and not new_run:
        new_run = ["a smaller model"]
    if checkpoint is None:
        return f"there is no checkpoint yet; run it again with {either([*changes, *new_run])}"
    goes_on = f"the same command with --accept-changes goes on from {checkpoint}, with {either(changes)}"
    anew = f"only a new run, in another training.output_dir, can have {either(new_run)}"
    return "; ".join([goes_on] * bool(changes) + [anew] * bool(new_run))


def either(settings: Sequence[str]) -> str:
    return " or ".join([*filter(None, [", ".join(settings[:-1])]), *settings[-1:]])


def training_changes(args: TrainingArguments, batch_tokens: int | None) -> tuple[list[str], list[str]]:
    """Return what makes a training step smaller: in a run that goes on, and only in a new one."""
    changes = [] if args.gradient_checkpointing else ["training.gradient_checkpointing=true"]
    if not (args.bf16 or args.fp16):
        changes.append("training.bf16=true")
    if batch_tokens is not None:
        return changes, [f"data.batch_tokens below {batch_tokens}"]
    if (rows := args.per_device_train_batch_size) > 1:
        changes.append(
            f"training.per_device_train_batch_size below {rows} and training.gradient_accumulation_steps above "
            f"{args.gradient_accumulation_steps}"
        )
    return changes, []


def evaluation_changes(args: TrainingArguments) -> list[str]:
    """Return what makes a batch of an evaluation smaller."""
    rows = args.per_device_eval_batch_size
    return [f"training.per_device_eval_batch_size below {rows}"] if rows > 1 else []
