"""The manifest of a folder: size and SHA-256 of its files, by which later damage is noticed."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

MANIFEST_FILE = "manifest.json"


def describe(folder: Path, files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Return name -> size and SHA-256 of files below a folder."""
    paths = [*files]
    return {
        str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, hash_all(paths), strict=True)
    }


def describe_content(content: bytes) -> dict[str, Any]:
    """Return what a manifest says of a file with this content."""
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def to_json(files: dict[str, dict[str, Any]]) -> str:
    """Return the text of a manifest."""
    return json.dumps({"files": files}, indent=1)


def damage(folder: Path) -> str | None:
    """Say in which file a folder differs from its manifest; None where all are whole."""
    try:
        files = json.loads((folder / MANIFEST_FILE).read_bytes())["files"]
        for name, known in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != known["size"]:
                return f"{name} has {path.stat().st_size} bytes instead of {known['size']}"
        for (name, known), digest in zip(files.items(), hash_all([folder / name for name in files]), strict=True):
            if digest != known["sha256"]:
                return f"{name} was changed: its SHA-256 is another"
    except FileNotFoundError:
        return f"it has no {MANIFEST_FILE}"
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        return f"{MANIFEST_FILE} cannot be read: {error!r}"
    return None if files else f"{MANIFEST_FILE} names no file"


def list_described(folder: Path) -> set[str]:
    """Return the names of the files in a folder's manifest; none where it cannot be read."""
    try:
        return {*json.loads((folder / MANIFEST_FILE).read_bytes())["files"]}
    except (ValueError, KeyError, TypeError, OSError, RecursionError):
        return set()


def damage_if_described(folder: Path) -> str | None:
    """Say as `damage` does; None too where there is no manifest to compare with."""
    return damage(folder) if (folder / MANIFEST_FILE).exists() else None


def hash_all(paths: Sequence[Path]) -> list[str]:
    """Return the SHA-256 of each file; several are read at a time, as hashing leaves Python's lock free."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [*pool.map(sha256, paths)]


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def flush_to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
