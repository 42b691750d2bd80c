"""What a run keeps on disk: checkpoints that are whole or are not there, its config, and its result.

A checkpoint is written into a staging folder, described by a manifest, flushed to the disk and then renamed, so that a
kill at any moment leaves either all of it or none. One is taken up again only if every file still has the size and the
SHA-256 that the manifest says.
"""

import errno
import hashlib
import json
import logging
import os
import resource
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from pipeline.errors import RunError

CONFIG_FILE = "run.yaml"
MANIFEST_FILE = "manifest.json"
STAGING_FOLDER = "staging"
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
