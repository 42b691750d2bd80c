"""What the tests of inspection share."""

import pytest

from tests.inspection.faulty import FAULTY, GOOD, HELD_OUT, write


@pytest.fixture
def pairs(tmp_path) -> str:
    """A folder of pairs with one of each fault."""
    return write(tmp_path / "data", train=GOOD + FAULTY, validation=HELD_OUT)
