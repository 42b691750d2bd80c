"""Cut rows into batches: rows of like lengths, with little padding, or any rows, where none is needed.

A row has a length on each side that is padded by itself: (source, target), or one. A batch of `n` rows costs
n * (longest source + longest target) places, whatever its rows need. So rows are put into an order in which neighbours
are alike on both sides, and the order is cut wherever a batch is full.

Sorted by the target, sources follow at random. In strips of targets, in which sources rise and fall by turns,
neighbours are alike on both sides, also where one strip ends and the next begins:

              source  1  2  3  4  5  6  7  8
    target 1-3        ---------------------,
    target 4-6        ,--------------------'
    target 7-9        '--------------------->
"""

import math
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import TypeVar

import numpy as np

MAX_STRIPS = 64  # borders between strips that are tried; each costs a count over all lengths

Feature = TypeVar("Feature")
Lengths = tuple[int, ...]  # of one row, on each side that is padded by itself
Room = Callable[[Lengths], int]  # rows that a batch may hold when each side is padded to its longest


def group(
    features: Sequence[Feature], lengths_of: Callable[[Feature], Lengths], room: Room, generator: np.random.Generator
) -> list[list[Feature]]:
    """Cut all features into batches of like lengths, in random order; rows of one length fall into them at random.

    Where a batch has room for 8 tokens when padded, rows of lengths (1, 1), (3, 1), (1, 1), (1, 3), (1, 1) become

        [(1, 1), (1, 1), (1, 1)]    3 * (1 + 1) = 6 places
        [(3, 1)]                    in the batch above it would make 4 * (3 + 1) = 16
        [(1, 3)]                    in the batch above it would make 2 * (3 + 3) = 12
    """
    order = order_by_length(Counter(map(lengths_of, features)), room)
    places = {lengths: place for place, lengths in enumerate(order)}
    shuffled = [features[index] for index in generator.permutation(len(features))]
    shuffled.sort(key=lambda feature: places[lengths_of(feature)])  # stable, so rows of one length stay shuffled
    batches: list[list[Feature]] = []
    longest: Lengths = ()  # of the last batch, on each side
    for feature in shuffled:
        lengths = lengths_of(feature)
        grown = tuple(map(max, longest, lengths)) if longest else lengths  # its longest with this row in it
        if batches and len(batches[-1]) < room(grown):
            batches[-1].append(feature)
            longest = grown
        else:
            batches.append([feature])
            longest = lengths
    return [batches[index] for index in generator.permutation(len(batches))]


def pack(
    features: Sequence[Feature], lengths_of: Callable[[Feature], Lengths], tokens: int, generator: np.random.Generator
) -> list[list[Feature]]:
    """Cut all features, in random order, into batches of at most `tokens` tokens, and of at least one feature."""
    batches: list[list[Feature]] = []
    left = 0
    for index in generator.permutation(len(features)):
        needed = sum(lengths_of(features[index]))
        if not batches or needed > left:
            batches.append([])
            left = tokens
        batches[-1].append(features[index])
        left -= needed
    return batches


def order_by_length(counts: Counter[Lengths], room: Room) -> list[Lengths]:
    """Put the lengths that occur into an order that, cut into batches, needs little padding.

    Which strips are best depends on how many rows have which lengths, and on the room in a batch. The search begins
    with every other border set. Then each border in turn is dropped where it is set, and set where it is not, and left
    so where the batches then need fewer places. Each is tried once: a second round over them changed nothing.

    Args:
        counts: how many rows have which lengths.
        room: rows that a batch may hold, by the longest length on each side.
    """
    if not counts or len(next(iter(counts))) == 1:  # one side, of which the order is plain
        return sorted(counts)
    targets = sorted({lengths[-1] for lengths in counts})
    room = cache(room)
    candidates = targets[1 :: math.ceil(len(targets) / MAX_STRIPS)]  # spread evenly; a strip begins at its border
    borders = set(candidates[::2])
    order = _order_in_strips(counts, borders)
    places = count_padded(counts, order, room)
    for border in candidates:
        trial_borders = borders ^ {border}  # with the border if it was not there, without it if it was
        trial_order = _order_in_strips(counts, trial_borders)
        trial_places = count_padded(counts, trial_order, room)
        if trial_places < places:
            borders, order, places = trial_borders, trial_order, trial_places
    return order


def count_padded(counts: Counter[Lengths], order: list[Lengths], room: Room) -> int:
    """Count the places, padding included, of the batches into which `group` cuts rows in this order.

    All rows of one length are dealt with at once, so this takes a step for each length and batch, not for each row.
    """
    places = batch_rows = 0
    longest: Lengths = ()
    for lengths in order:
        left = counts[lengths]
        while left:
            grown = tuple(map(max, longest, lengths)) if batch_rows else lengths
            taken = min(left, room(grown) - batch_rows)
            if taken > 0:
                left, batch_rows, longest = left - taken, batch_rows + taken, grown
            else:  # the batch is full
                places, batch_rows = places + batch_rows * sum(longest), 0
    return places + batch_rows * sum(longest)


def _order_in_strips(all_lengths: Iterable[Lengths], borders: set[int]) -> list[Lengths]:
    """Put lengths into strips by the last side; in each strip they rise, or in every second one fall.

    With the border 5, (1, 2), (1, 6), (9, 3), (9, 7) become (1, 2), (9, 3), (9, 7), (1, 6).
    """
    ordered_borders = sorted(borders)
    strips: list[list[Lengths]] = [[] for _ in range(len(ordered_borders) + 1)]
    for lengths in all_lengths:
        strips[bisect(ordered_borders, lengths[-1])].append(lengths)
    return [lengths for index, strip in enumerate(strips) for lengths in sorted(strip, reverse=index % 2 == 1)]
