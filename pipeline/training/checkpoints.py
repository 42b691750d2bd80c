"""The format of a checkpoint: which files it has, how it is written, and how it is found, checked and read.

A checkpoint is the folder `checkpoint-<step>` below the run's folder. It is whole or it is not there: its files are
written into a staging folder, described by a manifest, flushed to the disk, and only then is the folder renamed. A
kill at any moment leaves either all of it or none. Later damage is noticed as well: a run goes on from a checkpoint
only if every file still has the size and the SHA-256 that the manifest says.

| file | written by | holds |
|---|---|---|
| `model.safetensors`, `config.json`, tokenizer, code | `save_pretrained` | the model, ready for `from_pretrained` |
| `raw_weights.safetensors` | here | with averages of the steps: the weights to train on, whose averages the model has |
| `optimizer.pt`, `scheduler.pt`, `scaler.pt` | Trainer | moments, schedule, loss scale of fp16 |
| `rng_state*.pth` | Trainer | random states, a file a rank |
| `trainer_state.json` | Trainer | step, logs, best score, early stopping |
| `carried_<rank>.safetensors` | here | what a task carries from batch to batch, such as an LSTM's state |
| `run_state.json` | here | the position in the data, skipped steps, the data's fingerprints, what changed |
| `run.yaml` | copied | the run's config |
| `manifest.json` | here | size and SHA-256 of all others |
"""

import json
import logging
import math
import os
import shutil
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file

from pipeline.errors import ConfigError, RunError, explain_path, is_storage_error
from pipeline.manifest import MANIFEST_FILE, damage, describe, flush_to_disk, to_json
from pipeline.training.ranks import fail_together

CHECKPOINT_PREFIX = "checkpoint-"
STAGING_FOLDER = "staging"
STATE_FILE = "run_state.json"
CARRIED_FILE = "carried_{rank}.safetensors"
WEIGHTS_FILE = "model.safetensors"
RAW_WEIGHTS_FILE = "raw_weights.safetensors"
TRAINER_STATE_FILE = "trainer_state.json"
CONFIG_FILE = "run.yaml"  # in the run's folder, and copied into each checkpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Phase:
    """Steps of a run with the same settings and data.

    Attributes:
        first_step: counted from 1.
        changes: key -> value before and value from here on; empty in the phase in which a run begins.
    """

    first_step: int
    changes: dict[str, list[Any]]


@dataclass(frozen=True)
class RunState:
    """What Trainer does not keep of a run.

    Attributes:
        data: where the lanes of the training rows are, see `pipeline.data.lanes`; None at the beginning.
        skipped_steps: how many steps were not finite so far.
        revisions: the commits of data sets of the Hub, by `DataConfig.places`.
        fingerprints: of the data, by the same; None in checkpoints of version 0.1.0.
        phases: of the run so far.
    """

    data: dict[str, Any] | None = None
    skipped_steps: int = 0
    revisions: dict[str, str] = field(default_factory=dict)
    fingerprints: dict[str, str] | None = None
    phases: Sequence[Phase] = (Phase(1, {}),)


NEW_RUN = RunState()


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"{CHECKPOINT_PREFIX}{step}"


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(CHECKPOINT_PREFIX))


def list_checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints of a run, whole or not, the newest first."""
    paths = [
        path for path in folder.glob(f"{CHECKPOINT_PREFIX}*") if path.name.removeprefix(CHECKPOINT_PREFIX).isdecimal()
    ]
    return sorted(paths, key=step_of, reverse=True)


# Writing


def write_checkpoint(folder: Path, step: int, write_files: Callable[[Path], None]) -> Path:
    """Write the checkpoint of a step, on all ranks together, and return its path.

    Args:
        folder: of the run, which all ranks must share.
        write_files: writes this rank's files into the staging folder that it is called with.

    Raises:
        RunError: on every rank, when a file cannot be written on any of them; the checkpoint is then not there.
    """
    staging, checkpoint = folder / STAGING_FOLDER, checkpoint_path(folder, step)

    def write() -> None:
        if not staging.is_dir():
            raise RunError(
                f"{staging} is not there on rank {PartialState().process_index}: training.output_dir must lie on "
                "a file system that all machines share"
            )
        write_files(staging)

    # Each of the three waits for all ranks: no rank writes before the folder is empty, and none is still writing when
    # the main one makes the manifest.
    try:
        fail_together(lambda: _make_empty(staging), main_only=True)
        fail_together(write)
        fail_together(lambda: commit(staging, checkpoint), main_only=True)
    except RunError:
        if PartialState().is_main_process:
            shutil.rmtree(staging, ignore_errors=True)  # makes room
        raise
    return checkpoint


def save_carried(staging: Path, rank: int, carried: dict[str, torch.Tensor]) -> None:
    """Write what a task carries from batch to batch on this rank; no file where it carries nothing."""
    if carried:
        save_file(carried, staging / CARRIED_FILE.format(rank=rank))


def save_raw_weights(staging: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write the weights to train on, where those of the model are their averages."""
    save_file({name: weight.contiguous() for name, weight in weights.items()}, staging / RAW_WEIGHTS_FILE)


def save_run_state(staging: Path, state: RunState) -> None:
    """Write the run's own state, and copy its config beside it."""
    shutil.copy(staging.parent / CONFIG_FILE, staging)
    (staging / STATE_FILE).write_text(json.dumps(asdict(state)))


def commit(staging: Path, checkpoint: Path) -> None:
    """Make a finished staging folder the checkpoint.

    The order is the argument. The manifest describes files that are complete. All content is on the disk before the
    rename, and the rename before this returns, so that no crash of the machine leaves the new name with old content.
    A rename is atomic: whoever looks sees no checkpoint, or all of it.
    """
    for path in staging.rglob("*"):
        _refuse_link(path)
    files = sorted(path for path in staging.rglob("*") if path.is_file())
    with ThreadPoolExecutor() as pool:  # the disk writes while the processor hashes
        flushed = pool.map(flush_to_disk, files)
        (staging / MANIFEST_FILE).write_text(to_json(describe(staging, files)), encoding="utf-8")
        deque(flushed, maxlen=0)  # raises what they raised
    for path in (staging / MANIFEST_FILE, *filter(Path.is_dir, staging.rglob("*")), staging):
        flush_to_disk(path)
    # A damaged one that was passed over, one of this step before the run went back, or an earlier export.
    replaced = staging.with_name(f"{staging.name}-replaced")
    shutil.rmtree(replaced, ignore_errors=True)  # of a process that was killed here
    try:
        if checkpoint.exists():
            checkpoint.rename(replaced)
        staging.rename(checkpoint)
    except BaseException:
        if replaced.exists() and not checkpoint.exists():
            replaced.rename(checkpoint)
        raise
    finally:
        shutil.rmtree(replaced, ignore_errors=True)
    flush_to_disk(checkpoint.parent)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder that becomes the target in the end; of it nothing stays if what is done inside fails.

    Args:
        target: named by --output; what is there is replaced.

    Raises:
        RunError: where there is no room.
    """
    staging = target.with_name(f".{target.name}.staging-{os.getpid()}")
    made = [folder for folder in target.parents if not folder.exists()]
    try:
        with explain_path(f"--output {target}"):
            staging.mkdir(parents=True)
        yield staging
        commit(staging, target)
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        if is_storage_error(error):
            raise RunError(f"{target}: {error}; make room and run the same command again") from error
        raise


def rotate(folder: Path, limit: int | None, keep: set[Path]) -> None:
    """Remove the oldest checkpoints down to `limit`, but none of `keep`: the one just written, and the best."""
    if limit is None or limit <= 0:
        return
    checkpoints = list_checkpoints(folder)
    others = [path for path in reversed(checkpoints) if path not in keep]
    for path in others[: max(0, len(checkpoints) - max(limit, len(keep)))]:
        shutil.rmtree(path)


# Reading


def find_newest(folder: Path) -> Path | None:
    """Return the newest whole checkpoint, None without checkpoints; log which ones are passed over and why.

    Raises:
        RunError: when there are checkpoints, and none is whole.
    """
    passed_over = []
    for checkpoint in list_checkpoints(folder):
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint
        logger.warning("%s is passed over: %s", checkpoint, problem)
        passed_over.append(f"{checkpoint.name}: {problem}")
    if passed_over:
        raise RunError(
            f"{folder}: no checkpoint is whole ({'; '.join(passed_over)}); "
            "put one back from a copy, or remove the folder to start anew"
        )
    return None


def find_last_good(folder: Path) -> Path | None:
    """Return the newest whole checkpoint whose weights, losses and scores are finite; None where there is none."""
    for checkpoint in list_checkpoints(folder):
        if damage(checkpoint) is None and _is_finite(checkpoint):
            return checkpoint
    return None


def _is_finite(checkpoint: Path) -> bool:
    logs = json.loads((checkpoint / TRAINER_STATE_FILE).read_bytes())["log_history"]
    last = {name: value for log in logs for name, value in log.items()}
    return all(math.isfinite(value) for value in last.values() if isinstance(value, float)) and all(
        bool(tensor.isfinite().all()) for tensor in load_file(checkpoint / WEIGHTS_FILE).values()
    )


def find_config(checkpoint: Path) -> Path:
    """Return the config that a checkpoint, or the run in whose folder it lies, was trained with.

    Raises:
        ConfigError: where neither folder holds one.
    """
    for folder in (checkpoint, checkpoint.parent):
        if (folder / CONFIG_FILE).is_file():
            return folder / CONFIG_FILE
    raise ConfigError(f"{checkpoint}: there is no {CONFIG_FILE} in it, nor beside it; name a config with --config")


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the log lines of a run, whether it goes on or is finished, up to its newest checkpoint.

    Args:
        folder: of a run, or a checkpoint in it.

    Raises:
        ConfigError: where there is no checkpoint, or none with a log that can be read.
    """
    checkpoints = [folder] if (folder / TRAINER_STATE_FILE).is_file() else list_checkpoints(folder)
    for checkpoint in checkpoints:
        if (log := _read_log(checkpoint)) is not None:
            return [line for line in log if "step" in line]
    if checkpoints:
        raise ConfigError(f"{folder}: no {TRAINER_STATE_FILE} of its checkpoints can be read")
    raise ConfigError(f"{folder}: there is no checkpoint, which would hold the log of a run; name training.output_dir")


def read_steps(checkpoint: Path) -> int:
    """Return the number of steps that a checkpoint was written after."""
    return json.loads((checkpoint / TRAINER_STATE_FILE).read_bytes())["global_step"]


def read_run_state(checkpoint: Path) -> RunState:
    values = json.loads((checkpoint / STATE_FILE).read_text())
    data = values["data"]
    if data is not None and "lanes" not in data:  # of an earlier version, which had one
        values["data"] = {"next_batch": data["next_batch"], "lanes": [data]}
    if "revision" in values:  # of an earlier version, which had one data set
        revision = values.pop("revision")
        values["revisions"] = {} if revision is None else {"train": revision}
    phases = values.pop("phases", None)
    return RunState(**values) if phases is None else RunState(**values, phases=[Phase(**phase) for phase in phases])


def load_carried(checkpoint: Path, rank: int, world_size: int) -> dict[str, torch.Tensor]:
    """Load what a task carried on this rank, on the CPU; empty where it carried nothing.

    Raises:
        RunError: when the checkpoint is that of another number of processes.
    """
    num_files = len(list(checkpoint.glob(CARRIED_FILE.format(rank="*"))))
    if num_files and num_files != world_size:
        raise RunError(
            f"{checkpoint} holds the states of {num_files} processes, each with its own text, and this run has "
            f"{world_size}; go on with as many"
        )
    return load_file(checkpoint / CARRIED_FILE.format(rank=rank)) if num_files else {}


def load_raw_weights(checkpoint: Path) -> dict[str, torch.Tensor] | None:
    """Load the weights to train on, on the CPU; None where they are those of the model."""
    path = checkpoint / RAW_WEIGHTS_FILE
    return load_file(path) if path.is_file() else None


def find_best(
    folder: Path, log: Sequence[dict[str, Any]], score: str, is_higher_better: bool, turns: Collection[int] = ()
) -> list[Path]:
    """List the checkpoints of a run by their score, the best first, and of equal ones the earlier first.

    Nothing but the checkpoints and the log says which are the best, so a run that goes on finds the same.

    A checkpoint without a finite score at its step is left out. So is one of another course, which a run leaves behind
    when it goes back to an earlier checkpoint: its log does not say what this run's says.

    Args:
        log: of the run up to now.
        score: as the log names it.
        turns: steps from which on the score means something else. Only those checkpoints are listed that were scored
            as the newest one was.
    """
    scores = _scores(log, score)
    found = {
        step: path
        for path in list_checkpoints(folder)
        if (step := step_of(path)) in scores and _scores(_read_log(path) or [], score).get(step) == scores[step]
    }
    since = max((turn for turn in turns if turn <= max(found, default=0)), default=0)
    sign = -1 if is_higher_better else 1
    return [found[step] for step in sorted(found, key=lambda step: (sign * scores[step], step)) if step >= since]


def _scores(log: Sequence[dict[str, Any]] | None, name: str) -> dict[int, float]:
    """Return the finite scores by their steps; none without a log."""
    lines = [line for line in log or () if "step" in line]
    return {line["step"]: line[name] for line in lines if math.isfinite(line.get(name, math.nan))}


def _read_log(checkpoint: Path) -> list[dict[str, Any]] | None:
    """Return the log in a checkpoint; None where it cannot be read."""
    try:
        return json.loads((checkpoint / TRAINER_STATE_FILE).read_bytes())["log_history"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # damaged, or just removed by a run that goes on


def _refuse_link(path: Path) -> None:
    """Raise RunError for a link, through which a checkpoint would be written, or read, somewhere else."""
    if path.is_symlink():
        raise RunError(f"{path} is a link; remove it, as what is saved must lie in the run's own folder")


def _make_empty(folder: Path) -> None:
    _refuse_link(folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
