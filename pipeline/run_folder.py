"""The folder of a run: who works in it, which config it was begun with, where to go on, and whether it is finished."""

import hashlib
import json
import logging
import resource
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from filelock import FileLock, Timeout

from pipeline.config import Config, DataConfig
from pipeline.data.addresses import find_repository
from pipeline.data.hub_reading import resolve_commit
from pipeline.data.lanes import begin_other_data
from pipeline.data.splits import fingerprint_split
from pipeline.data_config import HELD_OUT_SPLITS, errors_of, place_of
from pipeline.errors import ConfigError, RunError, is_storage_error, one_line
from pipeline.manifest import (
    MANIFEST_FILE,
    damage,
    damage_if_described,
    describe,
    describe_content,
    flush_to_disk,
    to_json,
)
from pipeline.tasks.config_loading import load_config
from pipeline.tasks.registry import get_task
from pipeline.training import checkpoints
from pipeline.training.changes import (
    FILTERED,
    OF_SHARES,
    REFUSED,
    changed_content,
    describe_phases,
    differences,
    list_of,
    need_consent,
    other_training_data,
)
from pipeline.training.checkpoints import CONFIG_FILE, NEW_RUN, STATE_FILE, Phase, RunState, find_config
from pipeline.training.ranks import WriteError

METRICS_FILE = "metrics.json"  # of a finished run: its scores
LOCK_FILE = ".lock"
LOCK_PATIENCE = 10.0  # seconds; a run whose launcher was killed needs a moment to notice

OF_MIX = "mix."  # the places of its corpora begin so

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResumePoint:
    """Where a run begins.

    Attributes:
        checkpoint: to go on from; None begins anew.
        state: of the run there: its place in the data, their commit and fingerprints, and its phases.
        changes: the keys whose values differ from those of the checkpoint, and are applied from here on.
        is_finished: there is nothing left to do.
    """

    checkpoint: Path | None = None
    state: RunState = NEW_RUN
    changes: Collection[str] = ()
    is_finished: bool = False


class RunFolder:
    """`training.output_dir` of a run."""

    def __init__(self, path: Path):
        self.path = path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second run out of the folder; the system lifts the lock when this process ends, however it ends.

        Raises:
            ConfigError: when there is no such folder, nor can be.
            RunError: when another process holds it, or this user may not write there.
        """
        if not PartialState().is_main_process:
            yield
            return
        self._make()
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

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / LOCK_FILE).touch()
        except OSError as error:
            if is_storage_error(error):
                raise RunError(f"{self.path}: {error.strerror}; make room and run the same command again") from error
            problem = "it is not a folder" if isinstance(error, FileExistsError) else error.strerror
            raise ConfigError(
                f"training.output_dir: {self.path} cannot be written: {problem}; choose another folder"
            ) from error

    @contextmanager
    def storage_errors_explained(self) -> Iterator[None]:
        """Raise RunError, with path and space, where a full disk ends what is done inside."""
        try:
            yield
        except Exception as error:
            if isinstance(error, WriteError) or is_storage_error(error):
                raise RunError(explain_storage(self.path, error)) from error
            raise

    def begin(self, config: Config, state: RunState = NEW_RUN) -> None:
        """Mark the folder as that of an unfinished run of this config, which begins or goes on here."""
        for name in (METRICS_FILE, MANIFEST_FILE):
            (self.path / name).unlink(missing_ok=True)
        write_text(self.path / STATE_FILE, json.dumps(asdict(state)))
        comments = "".join(f"# {one_line(line)}\n" for line in describe_phases(state.phases))
        write_text(self.path / CONFIG_FILE, comments + config.to_yaml())

    @property
    def is_finished(self) -> bool:
        return (self.path / METRICS_FILE).is_file()

    def read_scores(self) -> dict[str, dict[str, Any]]:
        return json.loads((self.path / METRICS_FILE).read_text())

    def finish(self, scores: dict[str, dict[str, Any]], result: Iterable[Path]) -> None:
        """Mark the run as finished, and keep the hashes of its scores and of the files of its result."""
        content = json.dumps(scores, indent=2)
        described = describe(self.path, result) | {METRICS_FILE: describe_content(content.encode())}
        write_text(self.path / MANIFEST_FILE, to_json(described))
        write_text(self.path / METRICS_FILE, content)  # last: this file says that the run is finished

    def find_resume_point(self, config: Config, resume_from: str | bool | None, accept_changes: bool) -> ResumePoint:
        """Find where to begin: at the newest whole checkpoint, at the one that is named, or anew.

        Args:
            resume_from: `training.resume_from_checkpoint`: a folder; false to begin anew; None or true for the newest.

        Raises:
            ConfigError: when the run there has other settings or data, unless changes are accepted; when it has
                settings that cannot change; when a data set of the Hub cannot be reached.
            DataError: when there are no such data.
            RunError: when there are checkpoints, and none is whole.
        """
        if damaged := self._damage():
            logger.warning("%s is finished, but damaged: %s; its result is made again", self.path, damaged)
        known = self._known_config(is_damaged=damaged is not None)
        changed = {} if known is None else differences(known, config)
        fixed = [] if resume_from is False else _fixed(changed)
        if known is not None and (fixed or (need_consent(changed, known, config) and not accept_changes)):
            raise ConfigError(self._explain(f"with other settings ({', '.join(changed)})", fixed))
        checkpoint = self._find_checkpoint(resume_from)
        recorded = None if known is None else self._read_state()
        state = checkpoints.read_run_state(checkpoint) if checkpoint else recorded or NEW_RUN
        since = {} if checkpoint is None else differences(load_config(find_config(checkpoint)), config)
        if fixed := _fixed(since):
            raise ConfigError(self._explain(f"whose {checkpoint} has other settings ({', '.join(since)})", fixed))

        before = None
        if checkpoint or self.is_finished:
            before = load_config(find_config(checkpoint)) if checkpoint else known
        revisions = find_revisions(config.data, None if before is None else before.data, state.revisions)
        fingerprints = find_fingerprints(config, revisions)
        content = changed_content((recorded or state).fingerprints, fingerprints)
        if content and not accept_changes:
            raise ConfigError(self._explain(f"on other data: {', '.join(content)} changed", []))
        if self.is_finished and not (damaged or changed or content):
            return ResumePoint(is_finished=True)
        if checkpoint is None:
            return ResumePoint(state=RunState(revisions=revisions, fingerprints=fingerprints))
        if state.fingerprints is None:
            logger.info("%s does not say on which data it was trained, so they are not compared", checkpoint)
        since |= changed_content(state.fingerprints, fingerprints)
        return ResumePoint(checkpoint, _go_on(state, checkpoint, since, revisions, fingerprints), tuple(since))

    def _explain(self, found: str, fixed: list[str]) -> str:
        """Say which run is in the folder, and what to do."""
        way = "choose another folder, or remove this one"
        if not fixed:
            way = "choose another folder, remove this one, or go on with the new settings by --accept-changes"
        cannot = f"; {', '.join(fixed)} cannot change while a run goes on" if fixed else ""
        return f"training.output_dir: {self.path} holds a run {found}{cannot}; {way}"

    def _find_checkpoint(self, resume_from: str | bool | None) -> Path | None:
        if resume_from is False:
            return None
        if resume_from in (None, True):
            return checkpoints.find_newest(self.path)
        checkpoint = Path(str(resume_from))
        if not checkpoint.is_dir():
            raise ConfigError(
                f"training.resume_from_checkpoint: there is no folder {checkpoint}; name a checkpoint of a run"
            )
        if problem := damage(checkpoint):
            raise RunError(f"training.resume_from_checkpoint: {checkpoint} is not a whole checkpoint: {problem}")
        if not (checkpoint / checkpoints.TRAINER_STATE_FILE).is_file():  # such as the folder of a finished run
            raise ConfigError(
                f"training.resume_from_checkpoint: {checkpoint} has no state of a training; name a checkpoint of a "
                f"run, as in {checkpoints.checkpoint_path(checkpoint, 100)}"
            )
        return checkpoint

    def changed_keys(self, config: Config) -> list[str]:
        """Name the keys in which a config differs from that of the run in the folder, where there is one."""
        known = self._known_config()
        return [] if known is None else [*differences(known, config)]

    def _damage(self) -> str | None:
        """Say which file of a finished run is damaged; None where none is, or the run is not finished."""
        if not self.is_finished:
            return None
        if problem := damage_if_described(self.path):
            return problem
        try:
            self.read_scores()
        except ValueError as error:  # of a run of version 0.1.0, which has no manifest
            return f"{METRICS_FILE} is not valid JSON: {error}"
        return None

    def _known_config(self, is_damaged: bool = False) -> Config | None:
        """Return the config of the run in the folder, which has made a checkpoint or is finished; None without one.

        Args:
            is_damaged: whether to read it in the newest checkpoint, as the folder's own may be damaged.
        """
        newest = next(iter(checkpoints.list_checkpoints(self.path)), None)
        path = (newest if newest and is_damaged else self.path) / CONFIG_FILE
        return load_config(path) if (newest or self.is_finished) and path.is_file() else None

    def _read_state(self) -> RunState | None:
        """Return where the run in the folder began or went on; None for one of version 0.1.0, or a damaged file."""
        try:
            return checkpoints.read_run_state(self.path)
        except (FileNotFoundError, ValueError, TypeError, AttributeError, KeyError):
            return None


def find_revisions(data: DataConfig, before: DataConfig | None, known: Mapping[str, str]) -> dict[str, str]:
    """Return the commits at which data sets of the Hub are read, by `places`; the same data set has one.

    Args:
        before: the data of the run that goes on, which are read at the commits that are known of them.

    Raises:
        ConfigError: when a data set cannot be reached.
    """
    places = {} if before is None else before.places
    newest: dict[tuple[str, str | None], str] = {}
    revisions = {}
    for place, (rows, split) in data.places.items():
        with errors_of(place):
            asked = find_repository(rows, split)
        if asked is None:
            continue
        same = [old for old, earlier in places.items() if find_repository(*earlier) == asked]
        commit = next((known[old] for old in same if old in known), newest.get(asked))
        with errors_of(place):
            revisions[place] = commit or resolve_commit(*asked, data.hub_patience)
        newest[asked] = revisions[place]
    return revisions


def find_fingerprints(config: Config, revisions: Mapping[str, str]) -> dict[str, str]:
    """Return a hash of all that a run reads, by `DataConfig.places`; of filtered rows also of what filters them.

    Args:
        revisions: the commits of data sets of the Hub.

    Raises:
        ConfigError, DataError: as `open_split`.
    """
    fingerprints = {}
    for place, (rows, split) in config.data.pinned(revisions).places.items():
        with errors_of(place):
            columns = get_task(config.task).columns(config.with_data(rows))
            fingerprints[place] = fingerprint_split(rows, split, columns)
    held_out = [fingerprint for place, fingerprint in fingerprints.items() if place.startswith(HELD_OUT_SPLITS)]
    for name, corpus in config.data.corpora.items():
        if rules := corpus.filters.rules:
            compared = held_out if corpus.filters.drop_held_out else []
            content = json.dumps([rules, compared], sort_keys=True)
            fingerprints[place_of("train", name)] += FILTERED + hashlib.sha256(content.encode()).hexdigest()
    return fingerprints


def _fixed(changes: Iterable[str]) -> list[str]:
    return [key for key in changes if list_of(key) is REFUSED]


def _go_on(
    state: RunState,
    checkpoint: Path,
    changes: dict[str, list[Any]],
    revisions: dict[str, str],
    fingerprints: dict[str, str],
) -> RunState:
    """Return the state of a checkpoint as a run goes on with it: other rows are read from the first one on."""
    phases, position = state.phases, state.data
    if changes:
        phases = [*phases, Phase(checkpoints.read_steps(checkpoint) + 1, changes)]
    others = other_training_data(state.fingerprints, fingerprints, changes)
    if others is not None:
        logger.warning(
            "the training data are others than before (%s): going on with the first of them", ", ".join(sorted(others))
        )
    if position and (others or OF_SHARES & changes.keys()):  # with other shares the window in use would be another
        places = others or set()
        is_mix = all(place.startswith(OF_MIX) for place in places)  # and was one before
        names = {place.removeprefix(OF_MIX) for place in places}
        position = begin_other_data(position, names if is_mix else None)
    return replace(state, data=position, revisions=revisions, fingerprints=fingerprints, phases=phases)


def write_text(path: Path, text: str) -> None:
    """Write a file that is there as a whole or as it was before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.staged")
    staged.write_text(text, encoding="utf-8")
    flush_to_disk(staged)
    staged.rename(path)
    flush_to_disk(path.parent)


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
