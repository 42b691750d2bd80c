"""What a run keeps on disk: checkpoints that are whole or are not there, its config, and its result.

A checkpoint is written into a staging folder, described by a manifest, flushed to the disk and then renamed, so that a
kill at any moment leaves either all of it or none. One is taken up again only if every file still has the size and the
SHA-256 that the manifest says.
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from ruamel.yaml.compat import StringIO
from safetensors.torch import load_file

from pipeline.config import Config, parse
from pipeline.errors import ConfigError, RunError

CONFIG_FILE = "run.yaml"
METRICS_FILE = "metrics.json"
MANIFEST_FILE = "manifest.json"
STAGING_FOLDER = "staging"
LOCK_FILE = ".lock"
LOCK_PATIENCE = 10.0  # seconds; a run whose launcher was killed needs a moment to notice

# Settings that may change between a run and its continuation, as no result so far depends on them.
FREE_KEYS = {
    "training.output_dir",  # a folder may be moved
    "training.resume_from_checkpoint",
    "training.dataloader_num_workers",
    "training.dataloader_prefetch_factor",
    "training.dataloader_pin_memory",
    "training.disable_tqdm",
    "training.report_to",
    "data.worker_timeout",
    "data.hub_patience",
    "data.on_bad_row",  # skip, after a bad row was an error
    "data.max_bad_rows",
    "hub.push",
    "hub.every_save",
    "hub.model_id",
    "hub.private",
    "hub.license",
    "hub.patience",
}
STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

logger = logging.getLogger(__name__)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole or not, the newest first."""
    names = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]
    return sorted(names, key=step_of, reverse=True)


def commit(staging: Path, checkpoint: Path) -> None:
    """Makes a finished staging folder the checkpoint: manifest, fsync, rename, fsync."""
    files = sorted(path for path in staging.rglob("*") if path.is_file())
    manifest = {
        str(path.relative_to(staging)): {"size": path.stat().st_size, "sha256": _sha256(path)} for path in files
    }
    (staging / MANIFEST_FILE).write_text(json.dumps({"files": manifest}, indent=1), encoding="utf-8")
    for path in (*staging.rglob("*"), staging):
        _flush(path)
    if checkpoint.exists():  # one that was passed over, or the beginning of this very step again
        shutil.rmtree(checkpoint)
    staging.rename(checkpoint)
    _flush(checkpoint.parent)


def damage(checkpoint: Path) -> str | None:
    """Why a checkpoint is not whole; None where it is."""
    try:
        files = json.loads((checkpoint / MANIFEST_FILE).read_bytes())["files"]
        for name, known in files.items():
            path = checkpoint / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != known["size"]:
                return f"{name} has {path.stat().st_size} bytes instead of {known['size']}"
            if _sha256(path) != known["sha256"]:
                return f"{name} was changed: its SHA-256 is another"
    except FileNotFoundError:
        return f"it has no {MANIFEST_FILE}"
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        return f"{MANIFEST_FILE} cannot be read: {error!r}"
    return None if files else f"{MANIFEST_FILE} names no file"


def find_newest(folder: Path) -> Path | None:
    """The newest whole checkpoint; says which ones it passed over and why.

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


def average(checkpoints: list[Path]) -> dict[str, torch.Tensor]:
    """The mean of the weights, as Vaswani et al. 2017, section 6.1, take it of a run's last checkpoints.

    Raises:
        RunError: for a checkpoint that is not whole.
    """
    means: dict[str, torch.Tensor] = {}
    for checkpoint in checkpoints:
        if problem := damage(checkpoint):
            raise RunError(f"{checkpoint} is not a whole checkpoint, so cannot be averaged with others: {problem}")
        for name, tensor in load_file(checkpoint / "model.safetensors").items():
            means[name] = means.get(name, 0) + tensor.double() / len(checkpoints)
    return {name: mean.float() for name, mean in means.items()}


def rotate(folder: Path, limit: int | None, keep: set[Path]) -> None:
    """Removes the oldest checkpoints down to `limit`, but none of `keep`: the one just written, and the best."""
    if limit is None or limit <= 0:
        return
    checkpoints = list_checkpoints(folder)
    others = [path for path in reversed(checkpoints) if path not in keep]
    for path in others[: max(0, len(checkpoints) - max(limit, len(keep)))]:
        shutil.rmtree(path)


def write_text(path: Path, text: str) -> None:
    """Writes a file that is there as a whole or as it was before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.staged")
    staged.write_text(text, encoding="utf-8")
    _flush(staged)
    staged.rename(path)
    _flush(path.parent)


def begin(config: Config, folder: Path) -> None:
    """Marks a folder as that of an unfinished run of this config."""
    (folder / METRICS_FILE).unlink(missing_ok=True)
    stream = StringIO()
    YAML().dump(config.model_dump(), stream)
    write_text(folder / CONFIG_FILE, stream.getvalue())


def find_config(checkpoint: Path) -> Path:
    """The config that a checkpoint, or the run that it lies in, was trained with.

    Raises:
        ConfigError: where neither folder holds one.
    """
    for folder in (checkpoint, checkpoint.parent):
        if (folder / CONFIG_FILE).is_file():
            return folder / CONFIG_FILE
    raise ConfigError(f"{checkpoint}: there is no {CONFIG_FILE} in it, nor beside it; name a config with --config")


def changed_keys(config: Config, folder: Path) -> list[str]:
    """The keys in which a config differs from that of the run in a folder, where there is one."""
    known = folder / CONFIG_FILE
    if not known.is_file() or not (list_checkpoints(folder) or (folder / METRICS_FILE).is_file()):
        return []
    before = parse(YAML(typ="safe", pure=True).load(known.read_text(encoding="utf-8")), lambda key: str(known))
    differences = _differences(before.model_dump(), config.model_dump())
    return [key for key in differences if key not in FREE_KEYS]


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keeps a second process from training in the same folder; the system lifts it when this process ends.

    Raises:
        RunError: when another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + LOCK_PATIENCE
    with (folder / LOCK_FILE).open("a") as stream:
        while True:
            try:
                fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except (BlockingIOError, PermissionError) as error:
                if time.monotonic() > deadline:
                    raise RunError(f"{folder}: another process trains in this folder; stop it first") from error
                time.sleep(0.2)
            except OSError:  # a file system without locks
                break
        yield


def is_storage_error(error: BaseException) -> bool:
    """Whether there was no room; libraries written in Rust say so in the text alone."""
    number = error.errno if isinstance(error, OSError) else None
    return number in STORAGE_ERRORS or any(f"(os error {each})" in str(error) for each in STORAGE_ERRORS)


def explain_storage(folder: Path, error: BaseException | str) -> str:
    """What could not be written, beside the space that there is."""
    size_limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    newest = next(iter(list_checkpoints(folder)), None)
    size = sum(path.stat().st_size for path in newest.rglob("*")) if newest else 0
    return (
        f"{folder} could not be written: {error}; {shutil.disk_usage(folder).free / 1e6:,.1f} MB are free there"
        + (f", a file may have {size_limit / 1e6:,.1f} MB (ulimit -f)" if size_limit != resource.RLIM_INFINITY else "")
        + (f", a checkpoint takes {size / 1e6:,.1f} MB" if size else "")
        + "; what was saved before is whole: make room and run the same command again"
    )


def _differences(before: Any, now: Any, key: str = "") -> list[str]:
    """Dotted keys, two levels deep, whose values differ."""
    if isinstance(before, dict) and isinstance(now, dict) and key.count(".") < 1:
        return [
            difference
            for name in sorted({*before, *now})
            for difference in _differences(before.get(name), now.get(name), f"{key}.{name}" if key else name)
        ]
    return [] if before == now else [key]


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
