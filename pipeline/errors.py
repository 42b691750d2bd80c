"""The errors that are the user's to fix, each with the exit code that the command ends with."""

import difflib
import errno
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LONGEST_MESSAGE = 2_000  # characters; what a config or a file holds may be much longer


class TeacherForcingError(Exception):
    """Base of all errors that the command prints as one line; any other exception is a bug and keeps its traceback."""

    exit_code = 2


class ConfigError(TeacherForcingError):
    """A setting that cannot work; the message names the key, where it was given, and how to fix it."""


class DataError(TeacherForcingError):
    """Data that cannot be used; the message names the file, column or row, and how to fix it."""


class RunError(TeacherForcingError):
    """A run that cannot go on for reasons outside its config and data; the message says what is safe, and the fix."""

    exit_code = 3


class Stopped(RunError):
    """A run that a signal stopped after saving; the same command continues it."""

    exit_code = 75


class NotPublished(RunError):
    """A run that is trained, scored and saved, but not on the Hub."""

    exit_code = 4


INTERRUPTED = 130  # as a shell reports a command that Ctrl-C ended
BROKEN_PIPE = 141  # and one whose reader is gone
EXIT_CODES = (
    (0, "finished"),
    (ConfigError.exit_code, "wrong config or data"),
    (
        RunError.exit_code,
        "the run cannot go on (disk full, out of memory, values not finite, a hung worker), or an export is not "
        "equivalent; what was saved is whole",
    ),
    (NotPublished.exit_code, "trained, scored and saved, but not published: see teacher-forcing publish"),
    (Stopped.exit_code, "stopped by SIGTERM or SIGINT, and saved: the same command goes on"),
    (INTERRUPTED, "interrupted before or after the training"),
    (BROKEN_PIPE, "nobody reads standard output any more"),
)


def nearest(word: str, words: Iterable[str]) -> str:
    """Return `; did you mean X?` for the nearest of `words`, or a list of them all."""
    words = sorted(words)
    close = difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {close[0]}?" if close else f"; choose from {', '.join(words)}"


def one_line(message: object) -> str:
    """Return a message as one line that a terminal shows as it is: what it quotes may hold anything.

    The middle of a very long one is left out, as its beginning names the place and its end the remedy.
    """
    text = " ".join(str(message).split())
    if len(text) > LONGEST_MESSAGE:
        half = LONGEST_MESSAGE // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", lambda match: repr(match[0])[1:-1], text)


def is_storage_error(error: BaseException) -> bool:
    """Tell whether there was no room; libraries written in Rust say so in the text only."""
    number = error.errno if isinstance(error, OSError) else None
    return number in STORAGE_ERRORS or any(f"(os error {code})" in str(error) for code in STORAGE_ERRORS)


@contextmanager
def explain_path(place: str) -> Iterator[None]:
    """Raise what the operating system says about a file of the user's as an error that names it.

    Raises:
        RunError: where there is no room.
        ConfigError: for anything else.
    """
    try:
        yield
    except OSError as error:
        if error.errno in STORAGE_ERRORS:
            raise RunError(f"{place}: {error.strerror}; make room and run the same command again") from error
        raise ConfigError(f"{place}: {error.strerror or error}") from error
    except ValueError as error:  # Python's own, where the name holds a NUL character
        if "null byte" not in str(error):
            raise
        raise ConfigError(f"{place}: {error}; remove it from the name") from error


@contextmanager
def place_named(place: str) -> Iterator[None]:
    """Put the key of a corpus or set, such as `data.mix.clean`, before what is wrong with its data."""
    try:
        yield
    except (ConfigError, DataError) as error:
        raise type(error)(f"{place}: {error}") from error
