"""Read data sets and models from the Hub, whatever the network does.

- After a transient fault (a 503, a reset connection) a call is tried again for `data.hub_patience` seconds
  (`with_retries`); a stream goes on from the state behind the last rows that arrived (`iterate_stream`).
- Any other fault (a wrong name, no login) is said at once, in plain words with the fix: `explain_refusal`.
- A branch is resolved to one commit when a run starts, and files are checked by their SHA-256 when they arrive.
"""

import logging
import lzma
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import aiohttp  # by which fsspec reads the web; a dependency of `datasets`
from datasets import Dataset, IterableDataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
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

from pipeline.config import DataConfig
from pipeline.data.rows import Columns
from pipeline.data_config import is_address, split_names
from pipeline.errors import ConfigError, DataError, RunError, TeacherForcingError
from pipeline.manifest import sha256

TRANSIENT_CODES = {408, 429, 500, 502, 503, 504}  # of HTTP; a later try may not meet them
MODEL_FILES = (".json", ".safetensors", ".txt", ".model", ".spm")
LONGEST_WAIT = 30.0  # seconds between two tries
API_TIMEOUT = 30.0  # seconds for one answer
# What libraries raise where the Hub gives nothing. ConnectionError is what `datasets` says, and what a client raises
# that is told to stay offline.
NOT_REACHED = (HfHubHTTPError, httpx.TransportError, DatasetNotFoundError, ConnectionError, aiohttp.ClientError)
# What they raise for files that cannot be read; pyarrow's and pandas' errors are ValueErrors.
UNREADABLE = (
    *(ValueError, OSError, EOFError, DatasetGenerationError),
    *(zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError),
)

Result = TypeVar("Result")
ROWS_AT_ONCE = 1000  # that are read of a data set

logger = logging.getLogger(__name__)


class RetryBudget:
    """How long to try again: waits between tries, until `seconds` have passed since the first fault in a row.

    The waits are 1, 2, 4, ... 30 seconds, or what the server asks for in its Retry-After.

    Args:
        seconds: 0 gives up at once.
        what: named in the log.
    """

    def __init__(self, seconds: float, what: str):
        self.seconds, self.what = seconds, what
        self.reset()

    def reset(self) -> None:
        """Start anew, after a success."""
        self.first_fault: float | None = None
        self.pause = 1.0

    def wait(self, error: Exception, is_hopeful: bool | None = None) -> None:
        """Sleep before the next try, or raise `error`: where no time is left, or where waiting cannot help.

        Args:
            is_hopeful: whether waiting can help; None asks `is_transient`.
        """
        now = time.monotonic()
        self.first_fault = now if self.first_fault is None else self.first_fault
        left = self.first_fault + self.seconds - now
        if left <= 0 or not (is_transient(error) if is_hopeful is None else is_hopeful):
            raise error
        pause = min(_retry_after(error) or self.pause, left)
        logger.warning("%s: %s; trying again in %.0f s, for %.0f s more", self.what, in_short(error), pause, left)
        time.sleep(pause)
        self.pause = min(2 * self.pause, LONGEST_WAIT)


def with_retries(action: Callable[[], Result], seconds: float, what: str) -> Result:
    """Return the result of `action`, which is tried again after transient faults for so many seconds."""
    budget = RetryBudget(seconds, what)
    while True:
        try:
            return action()
        except Exception as error:
            budget.wait(error)


def is_on_hub(path: str) -> bool:
    """Tell whether a path means owner/name on the Hub, and nothing that lies on this machine."""
    return path.count("/") == 1 and not path.startswith((".", "/", "~")) and not Path(path).exists()


def retry_seconds(data: DataConfig) -> float:
    """Return the seconds to try again what cannot be read; 0 for local files, where waiting cannot help."""
    splits = (data.train, data.validation, data.test)
    names = [name for split in splits if isinstance(split, str | list) for name in split_names(split)]
    is_remote = is_on_hub(data.path) or any(map(is_address, (data.path, *names)))
    return data.hub_patience if is_remote else 0.0


def is_transient(error: BaseException) -> bool:
    """Tell whether the Hub or the way there may be well again later; a wrong name, login or file will not."""
    if _is_offline(error):
        return False
    for cause in _chain(error):
        if isinstance(cause, TeacherForcingError):
            return False
        response = getattr(cause, "response", None)
        if response is not None:
            return response.status_code in TRANSIENT_CODES
        if isinstance(cause, aiohttp.ClientResponseError):
            return cause.status in TRANSIENT_CODES
        if isinstance(cause, aiohttp.ClientConnectionError | aiohttp.ClientPayloadError):
            return True
        # ConnectionError is also what `datasets` says when it cannot reach the Hub.
        if isinstance(cause, httpx.TransportError | ConnectionError | TimeoutError | EOFError):
            return True
    return False


def explain_refusal(error: BaseException, name: str) -> str | None:
    """Say what is missing where the Hub refuses a repository, and how to fix it; None for other errors."""
    if _is_offline(error):
        return f"{name} is not in the local cache, and HF_HUB_OFFLINE forbids to fetch it; unset that once"
    for cause in _chain(error):
        if isinstance(cause, LocalTokenNotFoundError):
            return "there is no login; log in by `hf auth login`, or set HF_TOKEN"
        if isinstance(cause, GatedRepoError):
            return f"access to {name} is not granted; ask for it on its page, https://huggingface.co/{name}"
        if isinstance(cause, RevisionNotFoundError):
            return f"{name} has no such revision"
        if isinstance(cause, RepositoryNotFoundError):
            return f"there is no {name} on the Hub, or it is private: check the name, or log in by `hf auth login`"
        response = getattr(cause, "response", None)
        if response is not None and response.status_code == 401:
            return f"the Hub does not know this login, for {name}; log in by `hf auth login`, or set HF_TOKEN"
        if response is not None and response.status_code == 403:
            return f"the Hub grants this login no access to {name}"
    return None


def iterate_stream(
    rows: IterableDataset, size: int, patience: float, state: dict[str, Any] | None = None
) -> Iterator[tuple[Columns, dict[str, Any]]]:
    """Yield columns of `size` rows at a time, each with the stream's state behind them.

    After a fault the stream goes on from that state, so no row is lost or doubled, whatever went wrong in whichever
    reader.

    Args:
        patience: seconds to try again.
        state: where to begin; None is the beginning of the stream.
    """
    budget = RetryBudget(patience, "reading the stream")
    while True:
        if state is not None:
            rows.load_state_dict(state)
        try:
            # Not iter(rows): inside a loader worker that would read only this worker's share of the shards.
            for columns in rows.iter(batch_size=size):
                state = rows.state_dict()
                budget.reset()
                yield columns, state
            return
        except Exception as error:
            budget.wait(error)


def iterate_rows(rows: Dataset | IterableDataset, patience: float) -> Iterator[dict[str, Any]]:
    """Yield all rows one by one, trying again for `patience` seconds what a stream cannot read.

    Raises:
        DataError: for rows that cannot be read.
    """
    if isinstance(rows, Dataset):
        for columns in rows.iter(ROWS_AT_ONCE):  # several times as fast as one by one
            for values in zip(*columns.values(), strict=True):
                yield dict(zip(columns, values, strict=True))
        return
    count = 0
    try:
        for columns, _ in iterate_stream(rows, 100, patience):
            for values in zip(*columns.values(), strict=True):
                yield dict(zip(columns, values, strict=True))
                count += 1
    except (*NOT_REACHED, *UNREADABLE) as error:
        reason = explain_refusal(error, "the data set") or in_short(error)
        raise DataError(f"data: the rows behind row {count} cannot be read: {reason}") from error


def resolve_commit(name: str, revision: str | None, patience: float, kind: str = "dataset") -> str:
    """Return the commit for which a revision of a repository stands now.

    Raises:
        ConfigError: where there is no such repository, or no access to it.
    """
    api = HfApi()
    try:
        info: Any = with_retries(
            lambda: api.repo_info(name, repo_type=kind, revision=revision, timeout=API_TIMEOUT), patience, name
        )
    except NOT_REACHED as error:
        raise _refused(error, name) from error
    return info.sha


def _refused(error: Exception, name: str) -> TeacherForcingError:
    """Say what to change where the Hub refuses something; that it is not reached is no mistake of the config."""
    reason = explain_refusal(error, name)
    if reason is None and not isinstance(error, HfHubHTTPError):
        return RunError(f"{name}: the Hub is not reached: {in_short(error)}; run the same command again later")
    return ConfigError(reason or f"{name}: {in_short(error)}")


def download_files(name: str, files: list[str], revision: str, patience: float, kind: str = "dataset") -> list[Path]:
    """Download files of a repository into the local cache, and return their paths there.

    New ones whose SHA-256 the Hub knows are checked against it.

    Raises:
        DataError: when a file has other content than the Hub says, twice.
        ConfigError: where there is no access, or no such file.
    """
    repo: dict[str, Any] = {"repo_id": name, "repo_type": kind, "revision": revision}
    try:
        if all(isinstance(try_to_load_from_cache(filename=file, **repo), str) for file in files):
            return [Path(hf_hub_download(filename=file, **repo)) for file in files]
        known = with_retries(lambda: HfApi().get_paths_info(paths=files, **repo), patience, name)
        if missing := {*files} - {info.path for info in known}:
            raise ConfigError(f"{name} has no file {min(missing)} at revision {revision}; check the name")
        sums = {info.path: info.lfs.sha256 for info in known if getattr(info, "lfs", None)}
        return [_download_file(file, sums.get(file), repo, patience) for file in files]
    except NOT_REACHED as error:
        raise _refused(error, name) from error


def download_model(name: str, patience: float) -> Path:
    """Download a model with its tokenizer, as they stand now: settings, safetensors weights and vocabularies.

    Returns:
        The folder.

    Raises:
        ConfigError: where there is no such model, or no access to it.
    """
    revision = resolve_commit(name, None, patience, kind="model")
    try:
        files = with_retries(lambda: HfApi().list_repo_files(name, revision=revision), patience, name)
    except NOT_REACHED as error:
        raise _refused(error, name) from error
    wanted = [file for file in files if "/" not in file and file.endswith(MODEL_FILES)]
    if not any(file.endswith(".safetensors") for file in wanted):
        raise ConfigError(f"{name} has no weights in safetensors; others can run code when loaded, and are not")
    return download_files(name, wanted, revision, patience, kind="model")[0].parent


def _download_file(file: str, expected: str | None, repo: dict[str, Any], patience: float) -> Path:
    is_new = not isinstance(try_to_load_from_cache(filename=file, **repo), str)
    for force in (False, True):
        fetch = partial(hf_hub_download, filename=file, force_download=force, **repo)
        path = Path(with_retries(fetch, patience, file))
        if expected is None or not is_new or sha256(path) == expected:
            return path
        logger.warning("%s: %s arrived damaged, its SHA-256 is not the Hub's", repo["repo_id"], file)
    path.unlink()
    raise DataError(f"{repo['repo_id']}: {file} arrives damaged: its SHA-256 is not {expected}; try another network")


def _is_offline(error: BaseException) -> bool:
    """Tell whether a client was told to stay offline; `datasets` says so only in the text of its own error."""
    return any(
        isinstance(cause, OfflineModeIsEnabled) or OfflineModeIsEnabled.__name__ in str(cause)
        for cause in _chain(error)
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that led to it."""
    current: BaseException | None = error
    for _ in range(10):
        if current is None:
            return
        yield current
        current = current.__cause__ or current.__context__


def _retry_after(error: BaseException) -> float | None:
    for cause in _chain(error):
        response = getattr(cause, "response", None)
        if response is not None and response.headers.get("Retry-After", "").isdigit():
            return float(response.headers["Retry-After"])
    return None


def in_short(error: BaseException) -> str:
    """Return the kind and first line of an error."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:200]
