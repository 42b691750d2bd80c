"""Lines of text files, bounded: whatever a path names, reading it ends within seconds and little memory.

All that reads text by the line stands on this. A line ends only at a newline, so that U+2028 and the like misalign
nothing. Text in another encoding than UTF-8 is decoded before it is cut into lines, as a byte 0x0A of UTF-16 may be
half of another character; then it is UTF-8 for all that stands on this.

A file in a zip is named as if the zip were a folder, `corpus.zip/corpus.en-fr.en`. It is read out of the zip.
"""

import codecs
import io
import lzma
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from encodings.aliases import aliases
from itertools import chain, count
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.compression import compr

from pipeline.errors import ConfigError, DataError

LONGEST_LINE = 10_000_000  # bytes, unpacked; also of a row that spans lines
BUFFER = 1 << 17  # bytes
BLOCK = 1 << 19  # characters
WEB_TIMEOUT = 60  # seconds without a byte
COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}  # suffix -> name in fsspec
ZIP = ".zip"
ENCRYPTED = 1  # a flag of a file in a zip
# Deflate packs a file of equal bytes 1,032 to 1, text 3 to 1, and the most repetitive of corpora 30 to 1.
LARGEST_RATIO, ALWAYS_FINE = 200, 100_000_000  # of unpacked to packed; bytes unpacked
DAMAGED = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)  # what unpacking raises, besides OSError
# By the first that fits, as the mark of UTF-32 begins with that of UTF-16.
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
NO_TEXT = {"base64_codec", "bz2_codec", "hex_codec", "mbcs", "quopri_codec", "rot_13", "uu_codec", "zlib_codec"}
MARKED = b"\xef\xbf\xbd"  # U+FFFD in UTF-8, in the place of bytes that could not be decoded


def read_lines(file: str | Path, encoding: str | None = None) -> Iterator[bytes]:
    """Yield the lines of a file with their ends, unpacked and in UTF-8, without a byte order mark.

    Args:
        file: a path on this machine, or a URL of fsspec. What a network raises passes through, to be tried again.
        encoding: of the file, as `find_encoding` gives it.

    Raises:
        DataError: for a file of this machine that cannot be opened or unpacked; for one that is marked as UTF-16 and
            the like where another encoding is expected; for a line that is too long.
    """
    with open_unpacked(file) as stream:
        yield from bounded_lines(stream, str(file), encoding)


def read_text(file: str | Path, encoding: str | None = None) -> Iterator[str]:
    """Yield the text of a file block by block, unpacked; for those that are not read by the line.

    Args, Raises:
        As `read_lines`, but for lines.
    """
    with open_unpacked(file) as stream:
        text = open_text(stream, str(file), encoding)
        begin = text.read(BLOCK).removeprefix("\ufeff")
        yield from chain(filter(None, [begin]), iter(lambda: text.read(BLOCK), ""))


@contextmanager
def open_unpacked(file: str | Path) -> Iterator[IO[bytes]]:
    """Open a file of this machine, or a URL of fsspec, and unpack it where its name says that it is packed.

    Raises:
        DataError: for a file of this machine that cannot be opened, or that cannot be read while it is open. What a
            network raises passes through, to be tried again.
    """
    name, compression = str(file), COMPRESSED.get(Path(file).suffix)
    with ExitStack() as opened:
        try:
            if container(name) != name:
                stream = _open_member(name, opened)
            else:
                try:
                    stream = opened.enter_context(fsspec.open(name, "rb", compression=compression, **web_options(name)))
                except ValueError as error:  # where the package of a compression is not installed
                    raise DataError(f"{name}: {error}; unpack the file") from error
                # A file of the Hub reads a line of any length itself.
                stream = io.BufferedReader(stream, BUFFER) if "://" in name else stream  # type: ignore[type-var]
            yield stream
        except (OSError, *DAMAGED) as error:
            if "://" in name:
                raise
            raise DataError(f"{name}: {explain_unreadable(error)}") from error


def container(file: str) -> str:
    """Return the zip on this machine that a file is in, or else the file itself."""
    parents = (parent for parent in Path(file).parents if parent.suffix == ZIP and parent.is_file())
    return str(next(parents, file))


def list_members(archive: str) -> list[str]:
    """Return the names of the files in a zip.

    Raises:
        DataError: where it is not one, or is damaged.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            return [member.filename for member in opened.infolist() if not member.is_dir()]
    except (OSError, *DAMAGED) as error:
        raise DataError(f"{archive}: {explain_unreadable(error)}") from error


def web_options(address: str) -> dict[str, Any]:
    """Return what the client of fsspec needs for an address of the web: proxies, patience, and files as they are."""
    if not address.startswith(("http://", "https://")):
        return {}
    from aiohttp import ClientTimeout

    timeout = ClientTimeout(total=None, sock_connect=WEB_TIMEOUT, sock_read=WEB_TIMEOUT)
    headers = {"Accept-Encoding": "identity"}  # or a packed file might arrive unpacked
    return {"client_kwargs": {"trust_env": True, "timeout": timeout, "headers": headers}}


def _open_member(name: str, opened: ExitStack) -> IO[bytes]:
    """Open a file in a zip.

    Raises:
        DataError: where it is encrypted, or packed as no text is.
    """
    archive = container(name)
    packed = opened.enter_context(zipfile.ZipFile(archive))
    try:
        member = packed.getinfo(name.removeprefix(f"{archive}/"))
        if member.flag_bits & ENCRYPTED:
            raise DataError(f"{name}: the file is encrypted; unpack {archive} with its password")
        if member.file_size > max(ALWAYS_FINE, LARGEST_RATIO * member.compress_size):
            raise DataError(
                f"{name}: {member.compress_size:,} bytes that unpack to {member.file_size:,} are not text, but may be "
                f"made to fill a disk; unpack {archive} if you trust it"
            )
        stream: IO[bytes] = opened.enter_context(packed.open(member))
    except KeyError as error:
        raise DataError(f"{name}: there is no such file in {archive}") from error
    except NotImplementedError as error:
        raise DataError(f"{name}: {error}; unpack {archive}") from error
    if compression := COMPRESSED.get(Path(name).suffix):
        if compression not in compr:
            raise DataError(f"{name}: no package that unpacks {compression} is installed; unpack {archive}")
        stream = opened.enter_context(compr[compression](stream, mode="rb"))
    return io.BufferedReader(stream, BUFFER)  # type: ignore[type-var]  # whose own lines are slow


def bounded_lines(stream: IO[bytes], name: str, encoding: str | None = None) -> Iterator[bytes]:
    """Yield the lines of an open stream with their ends and in UTF-8, without a byte order mark.

    Args:
        name: what a message calls the stream.
        encoding: of the stream; None is UTF-8, whose bytes are passed on as they are.

    Raises:
        DataError: for a mark of another encoding, and for a line that is too long, after reading no more of it than is
            allowed.
    """
    text = None if encoding is None else open_text(stream, name, encoding)
    for number in count(1):
        if text is None:
            line = stream.readline(LONGEST_LINE + 1)
        else:  # characters, whose bytes may be some more; half of a surrogate pair is decoded by UTF-7 only
            line = text.readline(LONGEST_LINE + 1).encode("utf-8", "surrogatepass")
        if number == 1:
            if text is None:
                check_mark(line, name)
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line:
            return
        if len(line) > LONGEST_LINE:
            raise DataError(
                f"{name}:{number}: the line has more than {LONGEST_LINE // 1_000_000} MB; "
                "a text file with one row a line is needed"
            )
        yield line


def open_text(stream: IO[bytes], name: str, encoding: str | None) -> io.TextIOWrapper:
    """Decode a stream, with U+FFFD in the place of bytes that cannot be, and lines that end at a newline only.

    Raises:
        DataError: see `check_mark`.
    """
    buffered = io.BufferedReader(stream, BUFFER)  # type: ignore[type-var]
    check_mark(buffered.peek(4), name, encoding)
    return io.TextIOWrapper(buffered, encoding or "utf-8", "replace", newline="\n")


def check_mark(head: bytes, name: str, encoding: str | None = None) -> None:
    """Compare the byte order mark that a file begins with, or has not, with its encoding.

    Raises:
        DataError: where they contradict each other, or UTF-16 and UTF-32 do not say their order.
    """
    marked = next((marked for mark, marked in MARKS if head.startswith(mark)), None)
    if encoding is None:
        if marked not in (None, "utf-8"):
            raise DataError(
                f"{name}: the file is {marked.upper()}; convert it to UTF-8, as by `iconv -f {marked.upper()} -t "
                f"UTF-8`, or name the encoding of data: data.options={{encoding: {marked}}}"
            )
    elif marked is not None and not encoding.startswith(marked):
        raise DataError(
            f"{name}: the file is {marked.upper()} by its first bytes, where data.options.encoding={encoding}"
        )
    elif head and marked is None and encoding in ("utf-16", "utf-32"):
        order = "be" if head.startswith(b"\0") else "le"
        raise DataError(
            f"{name}: the file does not begin with a byte order mark; by its first bytes "
            f"data.options.encoding={encoding}-{order} is right"
        )


def find_encoding(name: object) -> str | None:
    """Return the codec of an encoding; None for UTF-8, which needs none.

    Args:
        name: `data.options.encoding`; None where it is not given.

    Raises:
        ConfigError: for one that Python does not know, with the nearest that it does.
    """
    if name is None:
        return None
    try:
        b" ".decode(str(name), "replace")  # which refuses codecs that do not decode to text
        codec = codecs.lookup(str(name)).name
    except (LookupError, ValueError) as error:
        known = [alias for alias, codec in aliases.items() if codec not in NO_TEXT]
        near = get_close_matches(str(name).lower(), known, n=1)
        choice = f"did you mean {near[0]}?" if near else "choose one of Python's, such as latin-1, cp1252 or utf-16"
        raise ConfigError(f"data.options: unknown encoding {name!r}; {choice}") from error
    return None if codec in ("utf-8", "utf-8-sig") else codec


def explain_unreadable(error: BaseException) -> str:
    """Say why a file of this machine cannot be read, and what to do."""
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return f"the file is damaged or not packed as its name says: {error}; make it again"


def decode(line: bytes) -> str:
    """Decode a line without its end; invalid bytes become U+FFFD, which tasks refuse."""
    return line.decode("utf-8", "replace").removesuffix("\n").removesuffix("\r")


def find_line_problem(line: bytes, encoding: str | None = None) -> str | None:
    """Say why a line is not text; None where it may be.

    Args:
        encoding: that it was decoded from; None for UTF-8, whose invalid bytes `decode` marks.
    """
    if b"\0" in line:
        return f"the line holds a NUL byte, so it is binary, or text that is not {encoding or 'UTF-8'}"
    if encoding is not None and MARKED in line:
        return f"the line holds bytes that are not {encoding}"
    return None
