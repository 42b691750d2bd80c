"""Reading from the Hub: patience with faults that pass, plain words for those that do not, checks of what arrived."""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from datasets import Dataset, IterableDataset
from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx

from pipeline.errors import ConfigError, DataError

PASSING = {408, 429, 500, 502, 503, 504}  # HTTP status codes that a later try may not meet
MODEL_FILES = (".json", ".safetensors", ".txt", ".model", ".spm")
LONGEST_WAIT = 30.0  # seconds between two tries
API_TIMEOUT = 30.0  # seconds for one answer

Result = TypeVar("Result")
Columns = dict[str, list]

logger = logging.getLogger(__name__)


class Patience:
    """Waits between tries, longer each time, until `seconds` have passed since the first fault in a row.

    Args:
        seconds: 0 gives up at once.
        what: named in the log.
    """

    def __init__(self, seconds: float, what: str):
        self.seconds, self.what = seconds, what
        self.reset()

    def reset(self) -> None:
        self.since: float | None = None
        self.pause = 1.0

    def wait(self, error: Exception, is_hopeful: bool | None = None) -> None:
        """Raises the error where waiting cannot help (by default: where it is no passing one), or has not."""
        now = time.monotonic()
        self.since = now if self.since is None else self.since
        left = self.since + self.seconds - now
        if left <= 0 or not (is_passing(error) if is_hopeful is None else is_hopeful):
            raise error
        pause = min(_retry_after(error) or self.pause, left)
        logger.warning("%s: %s; trying again in %.0f s, for %.0f s more", self.what, in_short(error), pause, left)
        time.sleep(pause)
        self.pause = min(2 * self.pause, LONGEST_WAIT)


def patiently(action: Callable[[], Result], seconds: float, what: str) -> Result:
    """The result of an action that is tried again after passing faults."""
    patience = Patience(seconds, what)
    while True:
        try:
            return action()
        except Exception as error:
            patience.wait(error)


def is_passing(error: BaseException) -> bool:
    """Whether the Hub or the way there may be well again later; a wrong name, login or file will not."""
    if any(isinstance(each, OfflineModeIsEnabled) for each in _chain(error)):
        return False
    for each in _chain(error):
        response = getattr(each, "response", None)
        if response is not None:
            return response.status_code in PASSING
        # ConnectionError is also what `datasets` says when it cannot reach the Hub.
        if isinstance(each, httpx.TransportError | ConnectionError | TimeoutError | EOFError):
            return True
    return False


def denial(error: BaseException, name: str) -> str | None:
    """What is missing, and the mend, where the Hub refuses a repository; None for other errors."""
    for each in _chain(error):
        if isinstance(each, LocalTokenNotFoundError):
            return "there is no login; log in by `hf auth login`, or set HF_TOKEN"
        if isinstance(each, GatedRepoError):
            return f"access to {name} is not granted; ask for it on its page, https://huggingface.co/{name}"
        if isinstance(each, RevisionNotFoundError):
            return f"{name} has no such revision"
        if isinstance(each, RepositoryNotFoundError):
            return f"there is no {name} on the Hub, or it is private: check the name, or log in by `hf auth login`"
        response = getattr(each, "response", None)
        if response is not None and response.status_code == 401:
            return f"the Hub does not know this login, for {name}; log in by `hf auth login`, or set HF_TOKEN"
        if response is not None and response.status_code == 403:
            return f"the Hub grants this login no access to {name}"
    return None


def iterate(
    rows: IterableDataset, size: int, patience: float, state: dict[str, Any] | None = None
) -> Iterator[tuple[Columns, dict[str, Any]]]:
    """Columns of `size` rows at a time and the stream's state behind them; after a fault it goes on from that state.

    So no row is lost or doubled, whatever went wrong in whichever reader.
    """
    waiting = Patience(patience, "reading the stream")
    while True:
        if state is not None:
            rows.load_state_dict(state)
        try:
            # Not iter(rows): inside a loader worker that would read this worker's share of the shards alone.
            for columns in rows.iter(batch_size=size):
                state = rows.state_dict()
                waiting.reset()
                yield columns, state
            return
        except Exception as error:
            waiting.wait(error)


def each_row(rows: Dataset | IterableDataset, patience: float) -> Iterator[dict[str, Any]]:
    """All rows, one by one."""
    if isinstance(rows, Dataset):
        yield from rows
    else:
        for columns, _ in iterate(rows, 100, patience):
            yield from (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))


def pin(name: str, revision: str | None, patience: float, kind: str = "dataset") -> str:
    """The commit for which a revision of a repository stands now.

    Raises:
        ConfigError: where there is no such repository, or no access to it.
    """
    api = HfApi()
    try:
        info: Any = patiently(
            lambda: api.repo_info(name, repo_type=kind, revision=revision, timeout=API_TIMEOUT), patience, name
        )
    except HfHubHTTPError as error:
        raise ConfigError(denial(error, name) or f"{name}: {in_short(error)}") from error
    return info.sha


def download(name: str, files: list[str], revision: str, patience: float, kind: str = "dataset") -> list[Path]:
    """Files of a repository in the local cache; new ones whose SHA-256 the Hub knows are checked against it.

    Raises:
        DataError: when a file has other content than the Hub says, twice.
        ConfigError: where there is no access.
    """
    where: dict[str, Any] = {"repo_id": name, "repo_type": kind, "revision": revision}
    try:
        if all(isinstance(try_to_load_from_cache(filename=file, **where), str) for file in files):
            return [Path(hf_hub_download(filename=file, **where)) for file in files]
        known = patiently(lambda: HfApi().get_paths_info(paths=files, **where), patience, name)
        sums = {info.path: info.lfs.sha256 for info in known if getattr(info, "lfs", None)}
        return [_download(file, sums.get(file), where, patience) for file in files]
    except HfHubHTTPError as error:
        raise ConfigError(denial(error, name) or f"{name}: {in_short(error)}") from error


def download_model(name: str, patience: float) -> Path:
    """The folder of a model with its tokenizer: settings, safetensors weights and vocabularies, as they stand now.

    Raises:
        ConfigError: where there is no such model, or no access to it.
    """
    revision = pin(name, None, patience, kind="model")
    files = patiently(lambda: HfApi().list_repo_files(name, revision=revision), patience, name)
    wanted = [file for file in files if "/" not in file and file.endswith(MODEL_FILES)]
    if not any(file.endswith(".safetensors") for file in wanted):
        raise ConfigError(f"{name} has no weights in safetensors; others can run code when loaded, and are not")
    return download(name, wanted, revision, patience, kind="model")[0].parent


def _download(file: str, expected: str | None, where: dict[str, Any], patience: float) -> Path:
    is_new = not isinstance(try_to_load_from_cache(filename=file, **where), str)
    for force in (False, True):
        fetch = partial(hf_hub_download, filename=file, force_download=force, **where)
        path = Path(patiently(fetch, patience, file))
        if expected is None or not is_new or _sha256(path) == expected:
            return path
        logger.warning("%s: %s arrived damaged, its SHA-256 is not the Hub's", where["repo_id"], file)
    path.unlink()
    raise DataError(f"{where['repo_id']}: {file} arrives damaged: its SHA-256 is not {expected}; try another network")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those that led to it."""
    current: BaseException | None = error
    for _ in range(10):
        if current is None:
            return
        yield current
        current = current.__cause__ or current.__context__


def _retry_after(error: BaseException) -> float | None:
    for each in _chain(error):
        response = getattr(each, "response", None)
        if response is not None and response.headers.get("Retry-After", "").isdigit():
            return float(response.headers["Retry-After"])
    return None


def in_short(error: BaseException) -> str:
    """Kind and first line of an error."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:200]
