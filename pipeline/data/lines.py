"""Lines of text files, bounded: whatever a path names, reading it ends within seconds and little memory.

All that reads text by the line stands on this. A line ends only at a newline byte, so that U+2028 and the like misalign
nothing.
"""

import codecs
import io
import lzma
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import IO, Any

import fsspec

from pipeline.errors import DataError

LONGEST_LINE = 10_000_000  # bytes, unpacked; also of a row that spans lines
BUFFER = 1 << 17  # bytes
BLOCK = 1 << 20  # bytes
WEB_TIMEOUT = 60  # seconds without a byte
COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}  # suffix -> name in fsspec
DAMAGED = (EOFError, zlib.error, lzma.LZMAError)  # what unpacking raises, besides OSError


def read_lines(file: str | Path) -> Iterator[bytes]:
    """Yield the lines of a file with their ends, unpacked, without a byte order mark.

    Args:
        file: a path on this machine, or a URL of fsspec. What a network raises passes through, to be tried again.

    Raises:
        DataError: for a file of this machine that cannot be opened or unpacked; for UTF-16; for a line that is too
            long.
    """
    with open_unpacked(file) as stream:
        # A file of the Hub reads a line of any length itself.
        yield from bounded_lines(io.BufferedReader(stream, BUFFER) if "://" in str(file) else stream, str(file))


def read_blocks(file: str | Path) -> Iterator[bytes]:
    """Yield the content of a file block by block, unpacked; for those that are not read by the line.

    Args, Raises:
        As `read_lines`, but for lines.
    """
    with open_unpacked(file) as stream:
        while block := stream.read(BLOCK):
            yield block


@contextmanager
def open_unpacked(file: str | Path) -> Iterator[IO[bytes]]:
    """Open a file of this machine, or a URL of fsspec, and unpack it where its name says that it is packed.

    Raises:
        DataError: for a file of this machine that cannot be opened, or that cannot be read while it is open.
    """
    name, compression = str(file), COMPRESSED.get(Path(file).suffix)
    try:
        with fsspec.open(name, "rb", compression=compression, **web_options(name)) as stream:
            yield stream
    except (OSError, *DAMAGED) as error:
        if "://" in name:
            raise
        raise DataError(f"{name}: {explain_unreadable(error)}") from error
    except ValueError as error:  # of fsspec, where the package of a compression is not installed
        raise DataError(f"{name}: {error}; unpack the file") from error


def web_options(address: str) -> dict[str, Any]:
    """Return what the client of fsspec needs for an address of the web: proxies, patience, and files as they are."""
    if not address.startswith(("http://", "https://")):
        return {}
    from aiohttp import ClientTimeout

    timeout = ClientTimeout(total=None, sock_connect=WEB_TIMEOUT, sock_read=WEB_TIMEOUT)
    headers = {"Accept-Encoding": "identity"}  # or a packed file might arrive unpacked
    return {"client_kwargs": {"trust_env": True, "timeout": timeout, "headers": headers}}


def bounded_lines(stream: IO[bytes], name: str) -> Iterator[bytes]:
    """Yield the lines of an open stream with their ends, without a byte order mark.

    Args:
        name: what a message calls the stream.

    Raises:
        DataError: for UTF-16, and for a line that is too long, after reading no more of it than is allowed.
    """
    for number in count(1):
        line = stream.readline(LONGEST_LINE + 1)
        if number == 1:
            refuse_utf16(line, name)
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line:
            return
        if len(line) > LONGEST_LINE:
            raise DataError(
                f"{name}:{number}: the line has more than {LONGEST_LINE // 1_000_000} MB; "
                "a text file with one row a line is needed"
            )
        yield line


def refuse_utf16(begin: bytes, name: str) -> None:
    """Raise DataError where the first bytes of a file are UTF-16."""
    if begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{name}: the file is UTF-16; convert it to UTF-8, as by `iconv -f UTF-16 -t UTF-8`")


def explain_unreadable(error: BaseException) -> str:
    """Say why a file of this machine cannot be read, and what to do."""
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return f"the file is damaged or not packed as its name says: {error}; make it again"


def decode(line: bytes) -> str:
    """Decode a line without its end; invalid bytes become U+FFFD, which tasks refuse."""
    return line.decode("utf-8", "replace").removesuffix("\n").removesuffix("\r")


def find_line_problem(line: bytes) -> str | None:
    """Say why a line is not text; None where it may be."""
    return "the line holds a NUL byte, so it is binary, or text that is not UTF-8" if b"\0" in line else None
