"""The errors that are the user's to fix, each with the exit code that the command ends with."""

import difflib
from collections.abc import Iterable


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


def nearest(word: str, words: Iterable[str]) -> str:
    """Return `; did you mean X?` for the nearest of `words`, or a list of them all."""
    words = sorted(words)
    close = difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {close[0]}?" if close else f"; choose from {', '.join(words)}"
