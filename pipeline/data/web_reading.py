"""Files of the web, https://host/folder/file.csv.gz: what their server says of them, and their download.

Plain http is for this machine only, as anybody on the way could change what is read. No login is sent, but for one in
the user's own netrc file. The client follows redirects to http and https only.
"""

import hashlib
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from urllib.parse import urlsplit

import aiohttp  # the client of fsspec, a dependency of `datasets`
import datasets
import fsspec

from pipeline.data.hub_reading import Result, in_short, is_transient, with_retries
from pipeline.data.lines import web_options
from pipeline.errors import ConfigError, DataError, RunError

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
PROBE = 65_536  # bytes
REFUSALS = {
    401: "the server wants a login, and none is sent; download the file, and name that",
    403: "the server refuses the file; download it in the way that its owner allows, and name that",
    404: "there is no such file; check the address",
    410: "the file is gone; check the address",
}


def check_address(url: str) -> None:
    """Refuse an address that is not read.

    Raises:
        ConfigError: for plain http elsewhere than on this machine, for a login in the address, and for no file.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in LOCAL_HOSTS:
        raise ConfigError(f"data: {url}: only https is read, as others could change what comes by http")
    if parts.username or parts.password:
        raise ConfigError("data: an address with a login in it would be published in run.yaml; leave the login out")
    if not Path(parts.path).suffix:
        raise ConfigError(f"data: {url} is not the address of a file, such as https://host/train.jsonl.gz")


def find_facts(url: str, patience: float) -> dict[str, Any]:
    """Ask the server which content a file has now: by its ETag, its time, its size, as far as it tells.

    Raises:
        ConfigError: where there is no such file, or it is refused.
        RunError: where the server is not reached.
    """
    check_address(url)
    info = _ask(url, patience, lambda: _files().info(url))
    check_address(info.get("url", url).partition("?")[0])  # where redirects lead
    return {name: info[name] for name in ("size", "ETag", "Last-Modified", "Content-MD5", "Digest") if info.get(name)}


def check_parts(url: str, patience: float) -> None:
    """Check that a file can be read as a stream.

    Raises:
        ConfigError: where the server gives no parts of a file, so that a stream could not go on behind a fault.
    """

    def probe() -> None:
        with _files().open(url, block_size=PROBE) as stream:
            stream.seek(1)
            stream.read(1)

    if urlsplit(url).query:
        raise ConfigError(f"data: {url}: an address with a ? is not streamed; set data.streaming=false")
    try:
        _ask(url, patience, probe)
    except ValueError as error:  # of fsspec
        raise ConfigError(f"data: {url}: the server gives no parts of a file; set data.streaming=false") from error


def download(url: str, patience: float) -> Path:
    """Download a file into the cache of `datasets`, unless this content is there; return its path.

    Raises:
        ConfigError, RunError: as `find_facts`.
        DataError: where it arrives with another size than the server says.
    """
    facts = find_facts(url, patience)
    key = hashlib.sha256(json.dumps([url, facts], sort_keys=True).encode()).hexdigest()[:32]
    folder = cache_folder() / key
    path = folder / Path(urlsplit(url).path).name
    if path.exists():
        return path
    staged = Path(mkdtemp(dir=cache_folder(), prefix="staged-")) / path.name
    _ask(url, patience, partial(_files().get_file, url, str(staged)))
    size = staged.stat().st_size
    if size != facts.get("size", size):
        raise DataError(f"data: {url} arrives with {size:,} of {facts['size']:,} bytes; try again later")
    folder.mkdir(exist_ok=True)
    os.replace(staged, path)
    staged.parent.rmdir()
    return path


def cache_folder() -> Path:
    """Return the folder of downloads, which is there."""
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "web"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _files() -> Any:
    return fsspec.filesystem("https", **web_options("https://"))


def _ask(url: str, patience: float, action: Callable[[], Result]) -> Result:
    """Do something that asks the server, and explain what it refuses."""
    try:
        return with_retries(action, patience, url)
    except (aiohttp.ClientError, OSError) as error:
        cause = error if isinstance(error, aiohttp.ClientError) else error.__cause__ or error
        status = getattr(cause, "status", 404 if isinstance(cause, FileNotFoundError) else None)
        if status in REFUSALS:
            raise ConfigError(f"data: {url}: {REFUSALS[status]}") from error
        if is_transient(error):
            raise RunError(
                f"{url}: the server is not reached: {in_short(cause)}; run the same command again"
            ) from error
        raise ConfigError(f"data: {url}: {in_short(cause)}") from error
