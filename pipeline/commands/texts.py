"""Texts that a user gives: arguments, and the lines of files and of standard input, all of them valid UTF-8."""

import sys
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import ConfigError, DataError, explain_path


def check_text(text: str, name: str) -> None:
    """Refuse an argument that is invalid UTF-8; Python hands such bytes over as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{name}: invalid UTF-8 in {text!r}") from error


def lines_of(file: Path | None, option: str) -> Iterator[bytes]:
    """Yield the lines of a file that an option names, or of standard input."""
    from pipeline.data.lines import bounded_lines

    if file is None:
        yield from bounded_lines(sys.stdin.buffer, "standard input")
        return
    with explain_path(f"{option} {file}"), file.open("rb") as stream:
        yield from bounded_lines(stream, str(file))


def decode(content: bytes, place: str, first_line: int = 1) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first_line + content.count(b"\n", 0, error.start)
        raise DataError(f"{place}:{line}: invalid UTF-8; fix this line, or convert all of the text to UTF-8") from error
