"""Rows into batches: those of like lengths, with little padding, or any, where none is needed."""

from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import TypeVar

import numpy as np

MAX_STRIPS = 64  # by which lengths are grouped

Feature = TypeVar("Feature")
Lengths = tuple[int, ...]  # of one row, on each side that is padded by itself
Room = Callable[[Lengths], int]  # rows that a batch may hold when each side is padded to its longest


def group(
    features: Sequence[Feature], lengths_of: Callable[[Feature], Lengths], room: Room, generator: np.random.Generator
) -> list[list[Feature]]:
    """Cuts all features into batches, in random order, in which rows of one length are mixed at random."""
    places = {lengths: place for place, lengths in enumerate(arrange(Counter(map(lengths_of, features)), room))}
    shuffled = [features[index] for index in generator.permutation(len(features))]
    shuffled.sort(key=lambda feature: places[lengths_of(feature)])  # stable
    batches: list[list[Feature]] = []
    longest: Lengths = ()
    for feature in shuffled:
        lengths = lengths_of(feature)
        grown = tuple(map(max, longest, lengths)) if longest else lengths
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
    """Cuts all features, in random order, into batches of so many tokens at most, and of one feature at least."""
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


def arrange(counts: Counter[Lengths], room: Room) -> list[Lengths]:
    """Puts the lengths that occur into an order that, cut into batches, needs little padding.

    Sorting by one side leaves the other at random. So the last side is divided into strips, and the others rise in one
    strip and fall in the next. Each border in turn is set or dropped where that pads fewer tokens; a second round
    found nothing more.
    """
    if not counts or len(next(iter(counts))) == 1:
        return sorted(counts)
    values = sorted({lengths[-1] for lengths in counts})
    room = cache(room)
    candidates = values[1 :: -(-len(values) // MAX_STRIPS)]
    borders = set(candidates[::2])
    best = _in_strips(counts, borders)
    padded = count_padded(counts, best, room)
    for border in candidates:
        trial = borders ^ {border}
        order = _in_strips(counts, trial)
        if (needed := count_padded(counts, order, room)) < padded:
            borders, best, padded = trial, order, needed
    return best


def count_padded(counts: Counter[Lengths], order: list[Lengths], room: Room) -> int:
    """Tokens, padding counted, of the batches into which rows in this order are cut."""
    padded = rows = 0
    longest: Lengths = ()
    for lengths in order:
        left = counts[lengths]
        while left:
            grown = tuple(map(max, longest, lengths)) if rows else lengths
            taken = min(left, room(grown) - rows)
            if taken > 0:
                left, rows, longest = left - taken, rows + taken, grown
            else:
                padded, rows = padded + rows * sum(longest), 0
    return padded + rows * sum(longest)


def _in_strips(lengths: Iterable[Lengths], borders: set[int]) -> list[Lengths]:
    ordered = sorted(borders)
    strips: list[list[Lengths]] = [[] for _ in range(len(ordered) + 1)]
    for each in lengths:
        strips[bisect(ordered, each[-1])].append(each)
    return [each for number, strip in enumerate(strips) for each in sorted(strip, reverse=number % 2 == 1)]
