"""A mixture of corpora: each lane draws its windows from its own share of each of them.

How many rows of a window come from which corpus is drawn at random, by numbers that follow from (seed, lane, window)
alone. A window has as many rows that can be used as it should have: the bad ones of a corpus are made up for by its
next ones, so shares are those of what is trained on.

    stage      |        clean 1, mined 1         |     clean 3, mined 1
    window     |       0        |       1        |       2        |
    clean      |    4 rows      |    3 rows      |    6 rows      |   pass 0, 0 and 1 of its 10 rows
    mined      |    4 rows      |    5 rows      |    2 rows      |   pass 0 of its 1,000 rows

Each corpus has its own passes, order and place, in `MixtureState`, which is the `stream_state` of a lane's `Position`.
"""

import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count, repeat
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset, IterableDataset

from pipeline.data.batch_stream import Counts, LaneStream, Position, Window
from pipeline.data.lane_rows import LaneRows
from pipeline.data.length_grouping import Lengths
from pipeline.data.rows import HOW_TO_FIX, BadRow, Columns, Feature
from pipeline.data_config import DataConfig, Until
from pipeline.errors import ConfigError, DataError

CORPUS = "corpus"  # of a feature: the name of the one that it comes from

Encoded = tuple[list[Feature], list[BadRow]]


@dataclass(frozen=True)
class Stage:
    """Windows with the same shares.

    Attributes:
        shares: of the rows, by corpus; they add up to 1.
        until: where it ends; None for the last one.
    """

    shares: dict[str, float]
    until: Until | None = None


def plan_stages(data: DataConfig, sizes: Mapping[str, int | None]) -> list[Stage]:
    """Return the stages of `data.mix`; where none are given, there is one.

    Args:
        sizes: rows of each corpus; None for a stream, of which `rows` says it.

    Raises:
        ConfigError: for shares by size where a size is not known, or is another than `rows` says.
    """
    assert data.mix is not None
    if data.stages is not None:
        return [Stage(_normalise(stage.weights), Until.parse(stage.until or "")) for stage in data.stages]
    if data.weights is not None:
        return [Stage(_normalise(data.weights))]
    known = {name: _size(name, size, data.mix[name].rows) for name, size in sizes.items()}
    exponent = 1 if data.temperature is None else 1 / data.temperature
    largest = max(known.values())  # by which all are divided, as a power of it may be larger than any float
    return [Stage(_normalise({name: (size / largest) ** exponent for name, size in known.items()}))]


def count_rows(data: DataConfig, corpora: Mapping[str, Dataset | IterableDataset]) -> dict[str, int | None]:
    """Return how many rows each corpus of `data.mix` has; of a stream what `rows` says, or None."""
    assert data.mix is not None
    return {name: len(rows) if isinstance(rows, Dataset) else data.mix[name].rows for name, rows in corpora.items()}


def _normalise(weights: Mapping[str, float]) -> dict[str, float]:
    largest = max(weights.values())  # as the sum of two may be larger than any float
    total = sum(weight / largest for weight in weights.values())
    return {name: weight / largest / total for name, weight in weights.items()}


def _size(name: str, size: int | None, rows: int | None) -> int:
    if size is None and rows is None:
        raise ConfigError(
            f"data.mix.{name}.rows: shares by size need the number of rows of this stream; give it, or data.weights"
        )
    if None not in (size, rows) and size != rows:
        raise ConfigError(f"data.mix.{name}.rows: {rows} is given, and there are {size}; leave it out")
    return size or rows or 0


@dataclass(frozen=True)
class Place:
    """Where a lane goes on in a corpus: behind some features of a chunk of its rows.

    Attributes:
        pass_index: passes over the lane's share of the corpus before this one.
        first_row: rows of this pass before the chunk.
        stream_state: where the chunk starts in a stream, see `LaneRows.read`.
        used: features of the chunk that are in windows already.
        bad_in_pass: bad rows of this pass before the chunk.
    """

    pass_index: int = 0
    first_row: int = 0
    stream_state: Any = None
    used: int = 0
    bad_in_pass: int = 0


@dataclass(frozen=True)
class MixtureState:
    """Where a window of a lane begins.

    Attributes:
        rows: in all windows before it.
        stage: that the window before it was in.
        stage_begin: pass and row where that began, by what its `until` counts; rows are those of the lane where rows
            are counted, else those of the corpus whose passes are.
        corpora: the place in each corpus.
    """

    rows: int = 0
    stage: int = 0
    stage_begin: Sequence[int] = (0, 0)
    corpora: Mapping[str, Place] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> "MixtureState":
        places = {name: Place(**place) for name, place in state["corpora"].items()}
        return cls(**{**state, "corpora": places})


class CorpusReader:
    """The features of a lane's share of one corpus, pass after pass.

    Args:
        name: of the corpus.
        rows: the lane's.
        encode: columns of some rows of a pass -> features and bad rows.
        chunk_rows: rows that are read at a time.
        max_bad_rows: that a pass may have; None for any number.
        place: where to begin.

    Raises:
        DataError: for one bad row too many, naming it; when a whole pass leaves no row to train on.
    """

    def __init__(
        self,
        name: str,
        rows: LaneRows,
        encode: Callable[[Columns, int], Encoded],
        chunk_rows: int,
        max_bad_rows: int | None,
        place: Place,
    ):
        self.name, self.rows, self.encode = name, rows, encode
        self.chunk_rows, self.max_bad_rows = chunk_rows, max_bad_rows
        self._begin = self._end = replace(place, used=0)
        self._features: list[Feature] = []
        self._used = 0
        self._chunks = self._read(self._begin)
        if place.used:  # the bad rows of this chunk were counted when it was first read
            self._next_chunk()
            self._used = place.used

    @property
    def place(self) -> Place:
        """Where the next feature is."""
        return self._end if self._used == len(self._features) else replace(self._begin, used=self._used)

    def take(self, count: int) -> Encoded:
        """Return the next features, and the bad rows that were met on the way."""
        features: list[Feature] = []
        bad_rows: list[BadRow] = []
        while len(features) < count:
            if self._used == len(self._features):
                bad_rows += self._next_chunk()
                self._used = 0
            taken = self._features[self._used : self._used + count - len(features)]
            self._used += len(taken)
            features += taken
        return features, bad_rows

    def _next_chunk(self) -> list[BadRow]:
        self._begin, self._end, self._features, bad_rows = next(self._chunks)
        return bad_rows

    def _read(self, place: Place) -> Iterator[tuple[Place, Place, list[Feature], list[BadRow]]]:
        """Yield chunks from a place on, without end: their beginning and end, features and bad rows."""
        for pass_index in count(place.pass_index):
            begin = place if pass_index == place.pass_index else Place(pass_index)
            is_whole, num_features = begin.first_row == 0, 0
            bad_rows: list[BadRow] = []
            for read, stream_state in self.rows.read(
                pass_index, begin.first_row, begin.stream_state, repeat(self.chunk_rows), self.chunk_rows
            ):
                columns = read()
                features, bad_rows = self._encode(columns, pass_index, begin)
                end = self._place_behind(begin, len(columns["row"]), stream_state, len(bad_rows))
                yield begin, end, features, bad_rows
                num_features += len(features)
                begin = end
            if is_whole and not num_features:  # or this would go on for ever
                raise DataError(self._explain_nothing(begin.first_row, bad_rows))

    def _encode(self, columns: Columns, pass_index: int, begin: Place) -> Encoded:
        features, found = self.encode(columns, pass_index)
        bad_rows = [BadRow(f"data.mix.{self.name}: {row.place}", row.reason) for row in found]
        num_bad = begin.bad_in_pass + len(bad_rows)
        if bad_rows and self.max_bad_rows == 0:
            raise DataError(f"{bad_rows[0]}; {HOW_TO_FIX}")
        if self.max_bad_rows is not None and num_bad > self.max_bad_rows:
            raise DataError(
                f"{num_bad} bad rows in one pass over data.mix.{self.name}, where data.max_bad_rows="
                f"{self.max_bad_rows}; one: {bad_rows[0]}"
            )
        return [{**feature, CORPUS: self.name} for feature in features], bad_rows

    def _place_behind(self, begin: Place, num_rows: int, stream_state: Any, num_bad: int) -> Place:
        first_row = begin.first_row + num_rows
        if first_row == self.rows.num_rows:
            return Place(begin.pass_index + 1)
        return Place(begin.pass_index, first_row, stream_state, bad_in_pass=begin.bad_in_pass + num_bad)

    def _explain_nothing(self, num_rows: int, bad_rows: list[BadRow]) -> str:
        lanes = self.rows.lanes
        hint = "" if lanes == 1 else f" for one of data.lanes={lanes}; set fewer"
        if not bad_rows:
            return f"data.mix.{self.name}: there are no training rows{hint}"
        return f"data.mix.{self.name}: none of the training rows can be used{hint}; the last: {bad_rows[-1]}"


class MixedStream(LaneStream):
    """Batches of one lane of a mixture.

    What a worker reads of a corpus for one window depends on the bad rows of all windows before it, so one worker makes
    all windows of a lane.

    Args:
        corpora: rows of all lanes, by name.
        sizes: how many rows each has; None where that is not known.
        stages: of which the last has no end.
        settings: of every `LaneStream`; `max_bad_rows` is for a pass over one corpus.
    """

    shares_windows: ClassVar[bool] = False

    def __init__(
        self,
        corpora: Mapping[str, Dataset | IterableDataset],
        encode: Callable[[Columns], list[Feature | BadRow]],
        lengths: Callable[[Feature], Lengths],
        *,
        stages: Sequence[Stage],
        sizes: Mapping[str, int | None],
        seed: int = 0,
        **settings: Any,
    ):
        super().__init__(encode, lengths, seed=seed, **settings)
        self.corpora, self.stages, self.sizes = corpora, stages, sizes
        self.lane_rows = {
            name: LaneRows(
                rows, _mix(seed, name), self.lane, self.lanes, patience=self.patience, place=f"data.mix.{name}"
            )
            for name, rows in corpora.items()
        }

    def windows(self, position: Position, worker: int = 0, num_workers: int = 1) -> Generator[Window]:
        """Yield windows; see `LaneStream.windows`."""
        assert num_workers == 1
        state = MixtureState() if position.stream_state is None else MixtureState.from_dict(position.stream_state)
        readers = {name: self._reader(name, state.corpora.get(name, Place())) for name in self.corpora}
        sizes = self._sizes(position)
        for index in count(position.window):
            state = self._enter_stage(state)
            size = min(next(sizes), self._rows_left(state))
            features: list[Feature] = []
            bad_rows: list[BadRow] = []
            bad: Counts = {}
            for name, number in self._draw(index, size, self.stages[state.stage].shares).items():
                taken, found = readers[name].take(number)
                features, bad_rows = features + taken, bad_rows + found
                bad[name] = [0, 0, len(found)]
            places = {name: reader.place for name, reader in readers.items()}
            state = replace(state, rows=state.rows + size, corpora=places)
            batches = self.cut(features, position.pass_index, index)
            yield Window(
                self.lane,
                position.pass_index,
                batches,
                size + len(bad_rows),
                bad_rows,
                asdict(state),
                self._count(batches, bad),
            )

    def _reader(self, name: str, place: Place) -> CorpusReader:
        seed = _mix(self.seed, name)
        return CorpusReader(
            name,
            self.lane_rows[name],
            lambda columns, pass_index: self.encode_rows(columns, pass_index, seed, name),
            self.chunk_rows,
            self.max_bad_rows,
            place,
        )

    def _is_first_pass(self, position: Position) -> bool:
        places = {} if position.stream_state is None else position.stream_state["corpora"]
        return not places or any(place["pass_index"] == 0 for place in places.values())

    def _check_bad_rows(self, bad_rows: list[BadRow], position: Position) -> None:
        """Allow them, as each `CorpusReader` counts those of its own passes; there are none as a whole."""

    def _draw(self, window: int, size: int, shares: Mapping[str, float]) -> dict[str, int]:
        """Draw how many rows of a window each corpus gives."""
        generator = np.random.default_rng((self.seed, window, 2))  # the 2 keeps these seeds apart
        numbers = generator.multinomial(size, [shares[name] for name in self.corpora])
        return {name: int(number) for name, number in zip(self.corpora, numbers, strict=True)}

    def _enter_stage(self, state: MixtureState) -> MixtureState:
        """Return the state in the stage that the next window is in: the first one that is not at its end."""
        stage = min(state.stage, len(self.stages) - 1)  # there may be fewer than before
        state = replace(state, stage=stage)
        while (until := self.stages[state.stage].until) and self._progress(state, until) >= self._end(state, until):
            after = self.stages[state.stage + 1].until
            begin = (0, 0) if after is None else self._progress(state, after)
            state = replace(state, stage=state.stage + 1, stage_begin=begin)
        return state

    def _progress(self, state: MixtureState, until: Until) -> tuple[int, int]:
        """Return pass and row, of what a stage counts."""
        if until.corpus is None:
            return 0, state.rows
        place = state.corpora.get(until.corpus, Place())
        return place.pass_index, place.first_row + place.used

    def _end(self, state: MixtureState, until: Until) -> tuple[int, int]:
        """Return pass and row at which this lane ends a stage."""
        passes, rows = state.stage_begin if until.is_more else (0, 0)
        if until.corpus is not None:
            return passes + until.count, rows
        share = until.count * (self.lane + 1) // self.lanes - until.count * self.lane // self.lanes
        return passes, rows + share

    def _rows_left(self, state: MixtureState) -> int:
        """Return how many rows the stage has left, where it counts rows; else more than any window."""
        until = self.stages[state.stage].until
        if until is None or until.corpus is not None:
            return self.window
        return self._end(state, until)[1] - state.rows

    def _count(self, batches: list[list[Feature]], bad: Counts) -> list[Counts]:
        """Return rows and tokens of each corpus in the first n batches, at index n, beside all bad rows."""
        counts = [{name: [*numbers] for name, numbers in bad.items()}]
        for batch in batches:
            so_far = {name: [*numbers] for name, numbers in counts[-1].items()}
            for feature in batch:
                numbers = so_far[feature[CORPUS]]
                numbers[0] += 1
                numbers[1] += sum(self.lengths(feature))
            counts.append(so_far)
        return counts


def _mix(seed: int, name: str) -> int:
    """Return a seed of a corpus, which does not depend on the corpora beside it."""
    return int(np.random.SeedSequence((seed, zlib.crc32(name.encode()))).generate_state(1)[0])


def interleave(readers: Mapping[str, Callable[[], Iterator[Any]]], shares: Mapping[str, float]) -> Iterator[Any]:
    """Yield rows of several corpora by their shares, evenly mixed, until each has been read once.

    A corpus that ends before is read again.

    Args:
        readers: what begins to read a corpus, by name.
    """
    used = [name for name in readers if shares[name]]
    rows = {name: readers[name]() for name in used}
    counts = dict.fromkeys(used, 0)
    unread = set(used)
    while True:
        name = min(used, key=lambda name: (counts[name] + 1) / shares[name])
        row = next(rows[name], None)
        if row is None:
            unread.discard(name)
            if not unread or not counts[name]:  # all are read, or this one is empty
                return
            rows[name] = readers[name]()
            continue
        counts[name] += 1
        yield row
