"""Bars and log lines, on a terminal and elsewhere."""

import io
import logging
import re
from contextlib import redirect_stderr

import pytest

from pipeline.progress import LogHandler, is_main, progress_bar
from tests.conftest import Terminal


def work_on(stream: io.StringIO) -> str:
    """Work through three rows, with a log line each, and return what was written."""
    logger = logging.Logger("work")
    logger.addHandler(LogHandler())
    with redirect_stderr(stream), progress_bar("reading", "rows", total=3) as bar:
        for number in range(3):
            logger.warning("row %d", number)
            bar.update()
            bar.refresh()
    return stream.getvalue()


def test_a_bar_and_a_log_line_share_no_line():
    shown = work_on(Terminal())
    assert "reading:  67%" in shown and "2/3 [" in shown and " rows/s]" in shown
    lines = [re.split("\r|\x1b\\[2K", line)[-1] for line in shown.split("\n")]  # as a terminal leaves them
    assert lines == ["row 0", "row 1", "row 2", ""]


def test_without_a_terminal_there_are_only_the_log_lines():
    assert work_on(io.StringIO()) == "row 0\nrow 1\nrow 2\n"


def test_only_the_first_process_shows_a_bar(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert is_main()
    monkeypatch.setenv("RANK", "1")
    shown = work_on(Terminal())
    assert not is_main() and "reading" not in shown and "row 2" in shown


def test_no_description_shows_no_bar():
    terminal = Terminal()
    with redirect_stderr(terminal), progress_bar(None, "rows", total=3) as bar:
        bar.update(3)
    assert not terminal.getvalue()


def test_an_error_ends_the_bar():
    terminal = Terminal()
    with pytest.raises(KeyError), redirect_stderr(terminal), progress_bar("reading", "rows", total=3):
        raise KeyError
    assert "0/3" in terminal.getvalue() and terminal.getvalue().endswith("\r")


def test_what_was_done_before_counts_for_no_speed():
    with redirect_stderr(Terminal()), progress_bar("training", "steps", total=100, done=90) as bar:
        assert bar.n == bar.format_dict["initial"] == 90
