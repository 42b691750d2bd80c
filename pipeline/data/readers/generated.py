"""Data sets that are made rather than read; `data.path` names one, `data.options` are its arguments."""

import random
from collections.abc import Callable
from inspect import signature

from datasets import Dataset

from pipeline.data.readers.base import Rows, SplitRequest
from pipeline.errors import ConfigError, nearest

MAX_NUMBERS = 50_000_000  # of all splits together


def accepts(request: SplitRequest) -> bool:
    return request.path in GENERATED


def read(request: SplitRequest) -> Rows:
    """Make the split.

    Raises:
        ConfigError: for a split or an option that the set does not have.
    """
    make = GENERATED[request.path]
    known = [*signature(make).parameters][1:]  # behind the split
    for name, value in request.options.items():
        if name not in known:
            raise ConfigError(f"data.options.{name}: unknown for {request.path}{nearest(name, known)}")
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ConfigError(f"data.options.{name}: {value!r} is not a whole number of at least 0")
    rows = make(str(request.split), **request.options)
    return rows.to_iterable_dataset() if request.streaming else rows


def reversal(
    split: str, length: int = 10, symbols: int = 20, rows: int = 20_000, held_out: int = 1_000, seed: int = 0
) -> Dataset:
    """Make sequences of numbers and their reversal, as text: "5 12 3" -> "3 12 5".

    Args:
        split: train, validation or test; no sequence stands in two of them.
        length: numbers in a sequence, drawn with repetition.
        symbols: the numbers are 1 to `symbols`.
        rows: size of the training split.
        held_out: size of each of the other two.

    Raises:
        ConfigError: for another split, for more numbers than memory should hold, or when there are too few different
            sequences.
    """
    sizes = {"test": held_out, "validation": held_out, "train": rows}
    if split not in sizes:
        raise ConfigError(f"data: the generated set has no split {split!r}{nearest(split, sizes)}")
    if length * sum(sizes.values()) > MAX_NUMBERS:
        raise ConfigError(f"data.options: length * (rows + 2 * held_out) is more than {MAX_NUMBERS:,}; make fewer")
    if symbols ** min(length, 64) < 2 * sum(sizes.values()):
        raise ConfigError(f"data.options: {symbols} symbols at length {length} make too few different sequences")
    generator = random.Random(seed)
    sequences: dict[tuple[int, ...], None] = {}  # a set that keeps its order
    while missing := sum(sizes.values()) - len(sequences):
        numbers = generator.choices(range(1, symbols + 1), k=length * missing)  # as many draws take a third of the time
        sequences.update(dict.fromkeys(zip(*[iter(numbers)] * length, strict=True)))
    names = list(sizes)
    start = sum(sizes[name] for name in names[: names.index(split)])
    sources = list(sequences)[start : start + sizes[split]]
    return Dataset.from_dict(
        {
            "source": [" ".join(map(str, sequence)) for sequence in sources],
            "target": [" ".join(map(str, reversed(sequence))) for sequence in sources],
        }
    )


GENERATED: dict[str, Callable[..., Dataset]] = {"reversal": reversal}  # its options are whole numbers
