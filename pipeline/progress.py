"""Bars that show on a terminal how far a long work is. Elsewhere, as in a log file, nothing is written.

Only the first of several processes shows one, on standard error, and no bar stays when its work is over.
"""

import logging
import math
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # else where it is needed, as `--help` should not wait for it
    from tqdm import tqdm


def is_main() -> bool:
    """Tell whether this is the process that prints, where a launcher started several."""
    return os.environ.get("RANK", "0") == "0"


def is_shown() -> bool:
    """Tell whether this process shows bars."""
    return is_main() and sys.stderr.isatty()


def progress_bar(description: str | None, unit: str, total: float = math.inf, done: int = 0) -> "tqdm":
    """Make a bar, to be used as a context in which `update(n)` is called, so that an error ends it too.

    Args:
        description: what is being done; None shows no bar.
        unit: what is counted, such as "rows".
        total: how many there are; infinite where nobody knows.
        done: how many of them an earlier run did, which do not count for the speed and the time left.
    """
    from tqdm import tqdm

    return tqdm(
        desc=description,
        unit=f" {unit}",
        total=total,
        initial=done,
        disable=description is None or not is_shown(),
        leave=False,
        dynamic_ncols=True,
    )


class LogHandler(logging.Handler):
    """Writes log lines on standard error above the bars, so that no line is shared."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        # tqdm knows its own bars only, not those of other processes and of libraries in Rust.
        erase = "\r\x1b[2K" if sys.stderr.isatty() else ""
        try:
            tqdm.write(erase + self.format(record).rstrip("\n"), file=sys.stderr)
        except Exception:  # as every handler of the standard library does
            self.handleError(record)
