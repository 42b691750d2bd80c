from collections import Counter

import numpy as np
import pytest

from pipeline.data.length_grouping import _order_in_strips, count_padded, group, order_by_length, pack

RANDOM = [tuple(pair) for pair in np.random.default_rng(0).integers(1, 60, (2000, 2)).tolist()]


def room_for(tokens):
    return lambda longest: max(1, tokens // sum(longest))


def identity(lengths):
    return lengths


def test_the_example_of_the_docstring():
    rows = [(1, 1), (3, 1), (1, 1), (1, 3), (1, 1)]
    batches = group(rows, identity, room_for(8), np.random.default_rng(0))
    assert sorted(batches) == [[(1, 1), (1, 1), (1, 1)], [(1, 3)], [(3, 1)]]


def test_strips_rise_and_fall_by_turns():
    lengths = [(1, 2), (1, 6), (9, 3), (9, 7)]
    assert _order_in_strips(lengths, {5}) == [(1, 2), (9, 3), (9, 7), (1, 6)]
    assert _order_in_strips(lengths, set()) == sorted(lengths)
    assert _order_in_strips(lengths, {3, 7}) == [(1, 2), (9, 3), (1, 6), (9, 7)]  # a strip begins at its border


@pytest.mark.parametrize("tokens", [1000, 4000])
def test_places_are_those_of_the_batches(tokens):
    """What the search counts is what the batches have, and less than without strips."""
    counts, room = Counter(RANDOM), room_for(tokens)
    order = order_by_length(counts, room)
    assert sorted(order) == sorted(counts)
    batches = group(RANDOM, identity, room, np.random.default_rng(0))
    assert sorted(row for batch in batches for row in batch) == sorted(RANDOM)
    longest = [tuple(map(max, zip(*batch, strict=True))) for batch in batches]
    assert all(len(batch) <= room(lengths) for batch, lengths in zip(batches, longest, strict=True))
    places = sum(len(batch) * sum(lengths) for batch, lengths in zip(batches, longest, strict=True))
    assert places == count_padded(counts, order, room)
    by_target = sorted(counts, key=lambda lengths: lengths[::-1])
    assert places < 0.9 * min(count_padded(counts, sorted(counts), room), count_padded(counts, by_target, room))


def test_one_side_is_sorted():
    assert order_by_length(Counter([(3,), (1,), (2,), (1,)]), room_for(10)) == [(1,), (2,), (3,)]
    assert order_by_length(Counter(), room_for(10)) == []


def test_packed_batches_hold_what_fits():
    batches = pack(RANDOM, identity, 300, np.random.default_rng(0))
    assert sorted(row for batch in batches for row in batch) == sorted(RANDOM)
    assert all(sum(map(sum, batch)) <= 300 for batch in batches)
    assert pack([(9, 9)] * 2, identity, 10, np.random.default_rng(0)) == [[(9, 9)], [(9, 9)]]
