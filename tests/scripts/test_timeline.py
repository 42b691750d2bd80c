"""The parts of a run's start: what is wrapped is there, and the parts add up."""

import time
from importlib import import_module
from operator import attrgetter

import pytest

from scripts.timeline import FIRST_STEP, OTHER, PARTS, SAVE, STEP_END, Timeline


@pytest.mark.parametrize("place", [*PARTS, STEP_END, SAVE], ids=lambda place: place[1])
def test_what_is_measured_is_there(place):
    """A function that was renamed or moved would be left out of the times without an error."""
    assert callable(attrgetter(place[1])(import_module(place[0])))


def test_parts_are_without_those_inside_them_and_add_up_to_the_age_of_the_process():
    timeline = Timeline()
    with timeline.part("outer"):
        time.sleep(0.01)
        with timeline.part("inner"):
            time.sleep(0.02)
        with timeline.part(FIRST_STEP):
            pass
        time.sleep(0.01)  # as the optimizer
        timeline.end_step()
        time.sleep(0.01)
    assert 0.01 <= timeline.parts["outer"] < 0.02 <= timeline.parts["inner"]
    assert timeline.parts[FIRST_STEP] == timeline.steps[0] >= 0.01
    assert timeline.parts[OTHER] > 0
    before = sum(timeline.parts.values())
    with timeline.part(FIRST_STEP):
        time.sleep(0.001)
    timeline.end_step()
    assert len(timeline.steps) == 2 and sum(timeline.parts.values()) == before
