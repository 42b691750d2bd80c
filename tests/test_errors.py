"""The errors of a user; tests/test_cli.py has how the command prints them."""

import pytest

from pipeline import errors
from pipeline.errors import nearest

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
