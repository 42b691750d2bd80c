"""Where the rows of a split are: below `data.path`, or at an address, hf:// of the Hub or https:// of the web.

path: owner/name, train: train                      the Hub's own name of a data set and a split
path: hf://datasets/owner/name@main/folder          the same for a folder of its files
train: hf://datasets/owner/name/folder/a.jsonl      one file of it; so is https://huggingface.co/datasets/...
train: https://host/a.jsonl.gz                      a file elsewhere
"""

import re
from dataclasses import dataclass

from huggingface_hub import constants, parse_hf_uri
from huggingface_hub.errors import HfUriError

from pipeline.config import DataConfig
from pipeline.data.hub_reading import is_on_hub
from pipeline.data_config import SplitNames, is_address, split_names
from pipeline.errors import ConfigError

FILE = re.compile(r"\.(csv|tsv|json|jsonl|ndjson|txt|parquet|arrow|zip|tmx)(\.(gz|bz2|xz|zst))?$", re.IGNORECASE)


@dataclass(frozen=True)
class Place:
    """Where one name of a split is.

    Attributes:
        path: a folder or file, owner/name on the Hub, the name of a generated set, or of the web the address of a
            file.
        name: of the split or file there, with its slice.
        revision: of a data set of the Hub.
        folder: of its files, in which the split is.
    """

    path: str
    name: str
    revision: str | None = None
    folder: str | None = None


def find_place(data: DataConfig, name: str) -> Place:
    """Say where a name of a split is.

    Raises:
        ConfigError: for an address that is not one of a data set or file.
    """
    if is_address(name):
        address, bracket, rest = name.partition("[")
        return _at_address(address, "train" + bracket + rest, None, data.revision)
    if is_address(data.path):
        return _at_address(data.path, name, data.revision, None)
    return Place(data.path, name, data.revision)


def is_remote(data: DataConfig, split: SplitNames) -> bool:
    """Tell whether some of a split is on the Hub or the web.

    Raises:
        ConfigError: as `find_place`.
    """
    paths = [find_place(data, name).path for name in split_names(split)]
    return any(is_on_hub(path) or is_address(path) for path in paths)


def find_repository(data: DataConfig, split: SplitNames) -> tuple[str, str | None] | None:
    """Return name and revision of the data set of the Hub that a split is read from; None where there is none.

    Raises:
        ConfigError: for several.
    """
    places = [find_place(data, name) for name in split_names(split)]
    found = [*dict.fromkeys((place.path, place.revision) for place in places if is_on_hub(place.path))]
    if len(found) > 1:
        raise ConfigError(
            f"data: {split_names(split)} are of several data sets of the Hub; name each as a corpus of data.mix, or as "
            "a set of its own"
        )
    return found[0] if found else None


def _at_address(address: str, name: str, before: str | None, otherwise: str | None) -> Place:
    """Split an address.

    Args:
        name: of the split or file there; "train" is what the address itself names, if that is a file.
        before, otherwise: revisions that go before that of the address, and that are taken where it has none.
    """
    is_web = not address.startswith(constants.HF_PROTOCOL)
    if is_web and not address.startswith(("https://huggingface.co/datasets/", f"{constants.ENDPOINT}/datasets/")):
        if name.partition("[")[0] != "train":
            raise ConfigError(f"data: {address} is one file, so it has no {name!r}; give its whole address there")
        return Place(address, name)
    try:
        uri = parse_hf_uri(address, constants.ENDPOINT)
    except HfUriError as error:
        raise ConfigError(f"data: {str(error).splitlines()[0]}") from error
    if uri.type != "dataset":
        raise ConfigError(f"data: {address} is a {uri.type}; data sets are at hf://datasets/owner/name")
    path, revision = uri.path_in_repo, before or uri.revision or otherwise
    if not FILE.search(path):
        return Place(uri.id, name, revision, path or None)
    text, bracket, rest = name.partition("[")
    if text != "train" and not is_file_name(text):
        raise ConfigError(f"data: {address} is one file, so it has no split {name!r}; name a file beside it, or null")
    folder = path.rpartition("/")[0]
    file = path if text == "train" else "/".join(filter(None, [folder, text]))
    return Place(uri.id, file + bracket + rest, revision)


def is_file_name(name: str) -> bool:
    """Tell whether a name is one of files rather than of a split."""
    return "." in name or "*" in name
