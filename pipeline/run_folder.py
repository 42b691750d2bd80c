"""The folder of a run: who works in it, which config it was begun with, where to go on, and whether it is finished."""

import errno
import json
import logging
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from filelock import FileLock, Timeout

from pipeline.config import Config
from pipeline.data.hub_reading import is_on_hub, resolve_commit
from pipeline.errors import ConfigError, RunError
from pipeline.manifest import damage
from pipeline.tasks.config_loading import load_config
from pipeline.training import checkpoints
from pipeline.training.checkpoints import CONFIG_FILE
from pipeline.training.ranks import WriteError

METRICS_FILE = "metrics.json"  # of a finished run: its scores
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
DATA_KEYS = {"data.path", "data.revision"}  # other data are read at their own newest commit

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResumePoint:
    """Where a run begins.

    Attributes:
        checkpoint: to go on from; None begins anew.
        revision: the commit at which data of the Hub are read.
        is_finished: there is nothing left to do.
    """

    checkpoint: Path | None = None
    revision: str | None = None
    is_finished: bool = False


class RunFolder:
    """`training.output_dir` of a run."""

    def __init__(self, path: Path):
        self.path = path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second run out of the folder; the system lifts the lock when this process ends, however it ends.

        Raises:
            RunError: when another process holds it, or this user may not write there.
        """
        if not PartialState().is_main_process:
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            lock: Any = FileLock(self.path / LOCK_FILE).acquire(timeout=LOCK_PATIENCE)
        except Timeout as error:
            raise RunError(f"{self.path}: another process trains in this folder; stop it first") from error
        except PermissionError as error:  # somebody else's folder, which must not pass for one that is free
            raise RunError(
                f"{self.path} cannot be locked: {error.strerror}; choose another training.output_dir"
            ) from error
        except (OSError, NotImplementedError):  # a file system without locks
            lock = nullcontext()
        with lock:
            yield

    @contextmanager
    def storage_errors_explained(self) -> Iterator[None]:
        """Raise RunError, with path and space, where a full disk ends what is done inside."""
        try:
            yield
        except Exception as error:
            if isinstance(error, WriteError) or is_storage_error(error):
                raise RunError(explain_storage(self.path, error)) from error
            raise

    def begin(self, config: Config) -> None:
        """Mark the folder as that of an unfinished run of this config."""
        (self.path / METRICS_FILE).unlink(missing_ok=True)
        write_text(self.path / CONFIG_FILE, config.to_yaml())

    @property
    def is_finished(self) -> bool:
        return (self.path / METRICS_FILE).is_file()

    def read_scores(self) -> dict[str, dict[str, Any]]:
        return json.loads((self.path / METRICS_FILE).read_text())

    def write_scores(self, scores: dict[str, dict[str, Any]]) -> None:
        """Mark the run as finished."""
        write_text(self.path / METRICS_FILE, json.dumps(scores, indent=2))

    def find_resume_point(self, config: Config, resume_from: str | bool | None, accept_changes: bool) -> ResumePoint:
        """Find where to begin: at the newest whole checkpoint, at the one that is named, or anew.

        Args:
            resume_from: `training.resume_from_checkpoint`: a folder; false to begin anew; None or true for the newest.

        Raises:
            ConfigError: when the folder holds a run of another config, unless changes are accepted, or when a data set
                of the Hub cannot be reached.
            RunError: when there are checkpoints, and none is whole.
        """
        keys = self.changed_keys(config)
        if keys and not accept_changes:
            raise ConfigError(
                f"training.output_dir: {self.path} holds a run with other settings ({', '.join(keys)}); "
                "choose another folder, remove this one, or go on with the new settings by --accept-changes"
            )
        if self.is_finished and not keys:
            return ResumePoint(is_finished=True)
        checkpoint = self._find_checkpoint(resume_from)
        if checkpoint and not DATA_KEYS & {*keys}:
            return ResumePoint(checkpoint, checkpoints.read_run_state(checkpoint).revision)
        data = config.data
        return ResumePoint(
            checkpoint, resolve_commit(data.path, data.revision, data.hub_patience) if is_on_hub(data.path) else None
        )

    def _find_checkpoint(self, resume_from: str | bool | None) -> Path | None:
        if resume_from is False:
            return None
        if resume_from in (None, True):
            return checkpoints.find_newest(self.path)
        checkpoint = Path(str(resume_from))
        if problem := damage(checkpoint):
            raise RunError(f"training.resume_from_checkpoint: {checkpoint} is not a whole checkpoint: {problem}")
        return checkpoint

    def changed_keys(self, config: Config) -> list[str]:
        """Name the keys in which a config differs from that of the run in the folder, where there is one."""
        known = self.path / CONFIG_FILE
        if not known.is_file() or not (checkpoints.list_checkpoints(self.path) or self.is_finished):
            return []
        before = load_config(known)
        differences = _differences(before.model_dump(), config.model_dump())
        return [key for key in differences if key not in FREE_KEYS]


def find_config(checkpoint: Path) -> Path:
    """Return the config that a checkpoint, or the run in whose folder it lies, was trained with.

    Raises:
        ConfigError: where neither folder holds one.
    """
    for folder in (checkpoint, checkpoint.parent):
        if (folder / CONFIG_FILE).is_file():
            return folder / CONFIG_FILE
    raise ConfigError(f"{checkpoint}: there is no {CONFIG_FILE} in it, nor beside it; name a config with --config")


def write_text(path: Path, text: str) -> None:
    """Write a file that is there as a whole or as it was before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.staged")
    staged.write_text(text, encoding="utf-8")
    checkpoints.flush_to_disk(staged)
    staged.rename(path)
    checkpoints.flush_to_disk(path.parent)


def is_storage_error(error: BaseException) -> bool:
    """Tell whether there was no room; libraries written in Rust say so in the text only."""
    number = error.errno if isinstance(error, OSError) else None
    return number in STORAGE_ERRORS or any(f"(os error {code})" in str(error) for code in STORAGE_ERRORS)


def explain_storage(folder: Path, error: BaseException | str) -> str:
    """Say what could not be written, beside the space that there is."""
    size_limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    newest = next(iter(checkpoints.list_checkpoints(folder)), None)
    size = sum(path.stat().st_size for path in newest.rglob("*")) if newest else 0
    return (
        f"{folder} could not be written: {error}; {shutil.disk_usage(folder).free / 1e6:,.1f} MB are free there"
        + (f", a file may have {size_limit / 1e6:,.1f} MB (ulimit -f)" if size_limit != resource.RLIM_INFINITY else "")
        + (f", a checkpoint takes {size / 1e6:,.1f} MB" if size else "")
        + "; what was saved before is whole: make room and run the same command again"
    )


def _differences(before: Any, now: Any, key: str = "") -> list[str]:
    """List dotted keys, two levels deep, whose values differ."""
    if isinstance(before, dict) and isinstance(now, dict) and key.count(".") < 1:
        return [
            difference
            for name in sorted({*before, *now})
            for difference in _differences(before.get(name), now.get(name), f"{key}.{name}" if key else name)
        ]
    return [] if before == now else [key]
