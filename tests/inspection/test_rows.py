"""The rows that are looked at."""

import pytest

from pipeline.inspection.rows import Example, Sample
from tests.inspection.faulty import config_of, look


@pytest.mark.parametrize("streaming", [False, True])
def test_the_first_rows(pairs, streaming):
    train, validation = look(config_of(pairs, data={"streaming": streaming}), 32)
    assert (train.rows, train.is_whole, train.bad.count) == (32, False, 0)
    assert train.repeated.rows.count == 1 and validation.is_whole
    assert look(config_of(pairs, data={"streaming": streaming}), 40)[0].is_whole


def test_a_sample_is_the_same_in_each_run():
    def draw() -> list[str]:
        sample = Sample(3)
        for number in range(1000):
            sample.add((number, Example(str(number), {})))
        found = sample.found()
        assert found.count == 1000
        return [example.place for example in found.examples]

    places = draw()
    assert places == draw() == sorted(places, key=int) and len({*places}) == 3
    assert int(places[-1]) > 100  # not only from the beginning
