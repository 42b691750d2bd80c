"""Fingerprints of files: which changes they show, and which they may miss."""

import os
import shutil

import pytest

from pipeline.data import fingerprints
from pipeline.data.fingerprints import fingerprint_files


@pytest.fixture
def files(tmp_path):
    for name, text in (("a", "one\ntwo\n"), ("b", "three\n")):
        (tmp_path / name).write_text(text)
    return [str(tmp_path / name) for name in "ab"]


def rewrite(file: str, content: bytes) -> None:
    """Change the content of a file, but not its time."""
    before = os.stat(file)
    with open(file, "wb") as stream:
        stream.write(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_content_counts_and_not_the_time(files):
    before = fingerprint_files(files)
    os.utime(files[0], (1, 1))
    assert fingerprint_files(files) == before
    rewrite(files[0], b"one\ntwx\n")
    assert fingerprint_files(files) != before


def test_names_count_and_not_the_folder(files, tmp_path):
    (tmp_path / "copies").mkdir()
    copies = [shutil.copy(file, tmp_path / "copies") for file in files]
    assert fingerprint_files(copies) == fingerprint_files(files)
    assert fingerprint_files(files[::-1]) != fingerprint_files(files)
    assert fingerprint_files(files[:1]) != fingerprint_files(files)
    assert fingerprint_files(["https://a/b"]) != fingerprint_files(["https://a/c"])


def test_large_files_are_known_by_sizes_times_and_blocks(files, monkeypatch):
    """Nine times as many bytes as are read: a change between the blocks is missed, one in a block is not."""
    for name, value in (("WHOLE", 100), ("BLOCKS", 4), ("BLOCK_SIZE", 10)):
        monkeypatch.setattr(fingerprints, name, value)
    rewrite(files[0], bytes(300))
    rewrite(files[1], bytes(60))
    before = fingerprint_files(files)
    rewrite(files[0], bytes(50) + b"x" + bytes(249))
    assert fingerprint_files(files) == before
    for file, offset, size in ((files[0], 0, 300), (files[0], 120, 300), (files[1], 59, 60)):
        rewrite(file, bytes(offset) + b"x" + bytes(size - offset - 1))
        assert fingerprint_files(files) != before
        rewrite(file, bytes(size))
    os.utime(files[0], (1, 1))
    assert fingerprint_files(files) != before
