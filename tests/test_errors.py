"""The errors of a user; tests/test_cli.py has how the command prints them."""

import errno

import pytest

from pipeline import errors
from pipeline.errors import LONGEST_MESSAGE, ConfigError, RunError, explain_path, nearest, one_line

CODES = {
    "TeacherForcingError": 2,
    "ConfigError": 2,
    "DataError": 2,
    "RunError": 3,
    "Stopped": 75,  # EX_TEMPFAIL of sysexits.h: try again
    "NotPublished": 4,
}


def test_every_error_has_its_exit_code():
    kinds = {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.TeacherForcingError)
    }
    assert {name: kind.exit_code for name, kind in kinds.items()} == CODES


@pytest.mark.parametrize("name", ["Stopped", "NotPublished"])
def test_a_run_that_ends_early_is_a_run_error(name):
    assert issubclass(getattr(errors, name), errors.RunError)


@pytest.mark.parametrize(
    "word, words, said",
    [
        ("d_modell", ["d_model", "dropout"], "; did you mean d_model?"),
        ("tset", {"train": 1, "test": 2}, "; did you mean test?"),
        ("xyz", ["b", "a"], "; choose from a, b"),
        ("xyz", (name for name in ("b", "a")), "; choose from a, b"),
    ],
)
def test_the_nearest_word_or_all_of_them(word, words, said):
    assert nearest(word, words) == said


def test_a_message_is_one_line_whatever_it_quotes():
    assert one_line("a\n  b\r\n\tc") == "a b c"
    assert one_line("\x1b[31mred \x00 \udcff \x9b") == "\\x1b[31mred \\x00 \\udcff \\x9b"
    assert one_line(ConfigError("größer, 大")) == "größer, 大"
    long = one_line("begin " + "x" * 100_000 + " end")
    assert long.startswith("begin ") and long.endswith(" end") and len(long) < LONGEST_MESSAGE + 10


def test_what_the_system_says_of_a_path(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for path, message in (
        ("loop", "links"),
        ("x" * 300, "name too long"),
        ("none", "No such file"),
        ("a\0b", "null byte"),
    ):
        with pytest.raises(ConfigError, match=f"^--file: .*{message}"), explain_path("--file"):
            (tmp_path / path).open()
    with pytest.raises(RunError, match=r"^--file: No space left on device; make room"), explain_path("--file"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(ValueError, match="a bug"), explain_path("--file"):
        raise ValueError("a bug")
