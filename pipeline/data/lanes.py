"""Lanes: shares of the training rows, each prepared by itself, whose batches are dealt out to the ranks in turn.

Counted over the whole run, all its interruptions included, micro-batch k is the next one of lane k mod L. Of W
ranks, rank r takes the micro-batches b + r, b + r + W, b + r + 2 W and so on, where b were done when it began. Four
lanes, two ranks:

    micro-batch   0   1   2   3   4   5   6   7   8   9
    lane          0   1   2   3   0   1   2   3   0   1
    its batch     0   0   0   0   1   1   1   1   2   2
    rank          0   1   0   1   0   1   0   1   0   1
    step            0       1       2       3       4

Rank 0 prepares the lanes 0 and 2, rank 1 the lanes 1 and 3. The batches are the same on one, two or four ranks. Where
the number of ranks does not divide that of lanes, a lane is prepared by several ranks: with one lane by all of them.

A lane that ends a pass begins its next one at once, so lanes may be in different passes for a while. No rank asks
another anything.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, fields, replace
from itertools import count
from math import gcd
from sys import maxsize
from typing import Any

from pipeline.data.batch_stream import NOTHING, BatchStream, LaneStream, Position, Window, add_counts
from pipeline.data.filters import READ, RULES, add_filtered
from pipeline.data.mixture import MixtureState

COUNTED = (READ, *RULES)  # of each corpus, in the order in which ranks tell each other
Placed = tuple[Position, Position, Window]  # a window between the positions of its beginning and its end


@dataclass(frozen=True)
class CorpusProgress:
    """What was trained on of one corpus of a mixture, over all passes.

    Attributes:
        rows, tokens: those on all sides of the rows; `bad_rows` are in neither.
        bad_in_pass: bad rows of the passes that the lanes are in.
        pass_index: the pass that the slowest lane is in.
    """

    rows: int = 0
    tokens: int = 0
    bad_rows: int = 0
    bad_in_pass: int = 0
    pass_index: int = 0

    @classmethod
    def of_lane(cls, position: Position, name: str) -> "CorpusProgress":
        used = add_counts(position.used, position.used_in_window)
        place = (position.stream_state or {}).get("corpora", {}).get(name, {})
        rows, tokens, bad_rows = used.get(name, NOTHING)
        return cls(rows, tokens, bad_rows, place.get("bad_in_pass", 0), place.get("pass_index", 0))

    @classmethod
    def together(cls, parts: Sequence["CorpusProgress"]) -> "CorpusProgress":
        return cls(
            rows=sum(part.rows for part in parts),
            tokens=sum(part.tokens for part in parts),
            bad_rows=sum(part.bad_rows for part in parts),
            bad_in_pass=sum(part.bad_in_pass for part in parts),
            pass_index=min(part.pass_index for part in parts),
        )


@dataclass(frozen=True)
class Progress:
    """How far the lanes of a rank, or of all ranks, have come.

    Attributes:
        epoch: passes done, of the slowest lane; of a mixture 0.
        pass_index: the pass that the slowest lane is in.
        skipped_rows: bad rows, over all passes.
        skipped_in_pass: bad rows of the passes that the lanes are in.
        corpora: of a mixture, by name.
        filtered: by name of the corpora whose rows are filtered, rows that were read and that each rule took, over all
            passes.
    """

    epoch: float = 0.0
    pass_index: int = 0
    skipped_rows: int = 0
    skipped_in_pass: int = 0
    corpora: Mapping[str, CorpusProgress] = field(default_factory=dict)
    filtered: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @classmethod
    def of_positions(
        cls, positions: Sequence[Position], counted: Sequence[Position], names: Collection[str] = ()
    ) -> "Progress":
        """Return the progress of lanes.

        Args:
            counted: those of the positions whose rows are counted here.
            names: of the corpora of a mixture.
        """
        nothing = CorpusProgress(pass_index=maxsize)
        filtered = add_filtered(*(part for here in counted for part in (here.filtered, here.filtered_in_window)))
        return cls(
            epoch=min(position.epoch for position in positions),
            pass_index=min(position.pass_index for position in positions),
            skipped_rows=sum(position.skipped_before + position.skipped_in_window for position in counted),
            skipped_in_pass=sum(position.skipped_in_pass + position.skipped_in_window for position in counted),
            corpora={
                name: CorpusProgress.together([nothing, *(CorpusProgress.of_lane(here, name) for here in counted)])
                for name in names
            },
            filtered={name: filtered[name] for name in names or ("",) if name in filtered},
        )

    def as_numbers(self) -> list[float]:
        """Return all of it, as it is told to the other ranks; see `of_all`."""
        of_corpora = [number for corpus in self.corpora.values() for number in astuple(corpus)]
        counts = [self.filtered.get(name, {}) for name in self.corpora or ("",)]
        of_filters = [numbers.get(rule, 0) for numbers in counts for rule in COUNTED]
        return [self.epoch, self.pass_index, self.skipped_rows, self.skipped_in_pass, *of_corpora, *of_filters]

    @classmethod
    def of_all(cls, ranks: Sequence[Sequence[float]], names: Collection[str] = ()) -> "Progress":
        """Return the progress of all ranks from the numbers of each."""
        epochs, passes, skipped_rows, skipped_in_pass, *_ = zip(*ranks, strict=True)
        width = len(fields(CorpusProgress))
        corpora = {
            name: CorpusProgress.together(
                [CorpusProgress(*map(int, numbers[start : start + width])) for numbers in ranks]
            )
            for start, name in zip(count(4, width), names, strict=False)
        }
        totals = [
            int(sum(told)) for told in zip(*(numbers[4 + width * len(names) :] for numbers in ranks), strict=True)
        ]
        filtered = {
            name: {rule: number for rule, number in zip(COUNTED, totals[start:], strict=False) if number}
            for start, name in zip(count(0, len(COUNTED)), names or ("",), strict=False)
            if totals[start]
        }
        return cls(min(epochs), int(min(passes)), int(sum(skipped_rows)), int(sum(skipped_in_pass)), corpora, filtered)


@dataclass(frozen=True)
class Deal:
    """Which micro-batches, and so which lanes, a rank takes.

    Attributes:
        lanes: L.
        rank, world_size: r of W.
        begin: b, the micro-batches that were done before.
    """

    lanes: int
    rank: int = 0
    world_size: int = 1
    begin: int = 0

    def take(self, turn: int) -> tuple[int, int]:
        """Return the lane that this rank takes from in its n-th turn, and the number of the batch in this lane."""
        number, lane = divmod(self.begin + turn * self.world_size + self.rank, self.lanes)
        return lane, number

    @property
    def own(self) -> list[int]:
        """The lanes that this rank prepares, in the order of its turns."""
        return [self.take(turn)[0] for turn in range(self.lanes // gcd(self.lanes, self.world_size))]

    def first_turn(self, lane: int, number: int) -> int:
        """Return the first turn in which this rank takes batch `number` of one of its lanes, or a later one of it."""
        own = self.own
        turn = own.index(lane)
        left = number - self.take(turn)[1]
        stride = self.take(turn + len(own))[1] - self.take(turn)[1]
        return turn + len(own) * max(0, -(-left // stride))

    def used(self, lane: int, turns: int) -> int:
        """Return how many batches of a lane all ranks together have used when each has taken so many turns."""
        return max(0, -(-(self.begin + turns * self.world_size - lane) // self.lanes))

    def tells(self, lane: int, turns: int) -> bool:
        """Whether this rank took the last batch of a lane, and so knows best how far it is; before any, the first."""
        last = (self.used(lane, turns) - 1) * self.lanes + lane - self.begin
        return last % self.world_size == self.rank if last >= 0 else self.rank < gcd(self.lanes, self.world_size)


class Lanes:
    """The batches of one rank, and the positions of its lanes.

    Args:
        make_stream: makes the stream of a lane, by its number.
        lanes: how many there are.
        rank, world_size: of the processes that train together.
    """

    def __init__(self, make_stream: Callable[[int], LaneStream], lanes: int = 1, rank: int = 0, world_size: int = 1):
        self.make_stream = make_stream
        self._begin(Deal(lanes, rank, world_size), dict.fromkeys(range(lanes), Position()))

    def _begin(self, deal: Deal, positions: dict[int, Position]) -> None:
        self.deal = deal
        self.turns = 0  # taken since `deal.begin`
        self.streams = {lane: self.make_stream(lane) for lane in deal.own}
        for lane, stream in self.streams.items():
            stream.position = positions[lane]
        self.current: dict[int, Placed] = {}

    @property
    def first(self) -> LaneStream:
        """The stream of one lane, for what is the same in all of them."""
        return next(iter(self.streams.values()))

    @property
    def positions(self) -> dict[int, Position]:
        """Where the lanes of this rank go on behind the last step."""
        return {lane: self._position(lane) for lane in self.streams}

    def state_dict(self) -> dict[str, Any]:
        """Return the positions, as plain data; `merge_states` joins those of all ranks."""
        next_batch = self.deal.begin + self.turns * self.deal.world_size
        return {"next_batch": next_batch, "lanes": {lane: here.to_dict() for lane, here in self.positions.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the lanes of a checkpoint are."""
        positions = positions_of(state)
        deal = replace(self.deal, lanes=len(positions), begin=state["next_batch"])
        self._begin(deal, dict(enumerate(positions)))

    def progress(self) -> Progress:
        """Tell how far this rank's lanes are; what is counted of a lane is told by one of its ranks."""
        positions = self.positions
        own = [here for lane, here in positions.items() if self.deal.tells(lane, self.turns)]
        return Progress.of_positions([*positions.values()], own, self.corpora)

    @property
    def corpora(self) -> Collection[str]:
        """The names of the corpora of a mixture."""
        return self.first.sizes

    def count_batches(self) -> int:
        """Count the batches of this rank's longest lane in its first pass; reads and encodes every row once."""
        streams = [stream for stream in self.streams.values() if isinstance(stream, BatchStream)]
        return max(stream.count_batches() for stream in streams)

    def restart(self) -> None:
        """Begin to read anew, behind the last step."""
        begin = self.deal.begin + self.turns * self.deal.world_size
        self._begin(replace(self.deal, begin=begin), self.positions)

    def windows(self, worker: int = 0, num_workers: int = 1) -> Iterator[Window]:
        """Yield the windows that a worker prepares, in the order in which `batches` asks for them; see `workers_of`."""
        shares = {}
        for lane in self.streams:
            workers = self.workers_of(lane, num_workers)
            if worker in workers:
                shares[lane] = (workers.index(worker), len(workers))
        windows = {lane: self.streams[lane].windows(self.streams[lane].position, *shares[lane]) for lane in shares}
        first_batches = {lane: self.streams[lane].position.first_batch for lane in shares}
        while True:
            lane = min(shares, key=lambda lane: self.deal.first_turn(lane, first_batches[lane]))
            window = next(windows[lane])
            first_batches[lane] += len(window.batches)
            yield window

    def workers_of(self, lane: int, num_workers: int) -> list[int]:
        """Return the workers that prepare a lane, its windows in turn; one of them where there are lanes enough."""
        own = self.deal.own
        place = own.index(lane)
        if len(own) >= num_workers or not self.first.shares_windows:
            return [place % num_workers]
        return [worker for worker in range(num_workers) if worker % len(own) == place]

    def count_useful(self, num_workers: int) -> int:
        """Count the workers that have something to prepare."""
        return len({worker for lane in self.streams for worker in self.workers_of(lane, num_workers)})

    def batches(self, windows: dict[int, Iterator[Window]]) -> Iterator[Any]:
        """Yield this rank's batches without end.

        Args:
            windows: of each of its lanes, from where the lane is.
        """
        placed = {lane: stream.with_positions(windows[lane], stream.position) for lane, stream in self.streams.items()}
        for turn in count():
            lane, number = self.deal.take(turn)
            while lane not in self.current or number >= self.current[lane][1].first_batch:
                self.current[lane] = next(placed[lane])
            start, _, window = self.current[lane]
            assert window.lane == lane
            self.turns = turn + 1
            yield window.batches[number - start.first_batch]

    def _position(self, lane: int) -> Position:
        stream, used = self.streams[lane], self.deal.used(lane, self.turns)
        if lane not in self.current:
            return replace(stream.position, next_batch=used)
        return stream.position_behind(*self.current[lane], used)


def merge_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join what `Lanes.state_dict` gives on each rank: the micro-batches that are done, and the position of each lane.

    Where ranks share a lane, the position of the one that has read the furthest is taken.
    """
    lanes: dict[int, dict[str, Any]] = {}
    for state in states:
        for lane, position in state["lanes"].items():
            if lane not in lanes or position["first_batch"] > lanes[lane]["first_batch"]:
                lanes[lane] = position
    return {"next_batch": states[0]["next_batch"], "lanes": [lanes[lane] for lane in range(len(lanes))]}


def positions_of(state: dict[str, Any]) -> list[Position]:
    """Return the positions of all lanes in a checkpoint."""
    return [Position.from_dict(position) for position in state["lanes"]]


def begin_other_data(state: dict[str, Any], corpora: Collection[str] | None = None) -> dict[str, Any]:
    """Return where to go on when some rows, or the shares of a mixture, are others than before.

    All lanes begin the same next pass; of a mixture, the others of its corpora go on where the window in use began, so
    some of its rows may be read twice. What was used of that window counts.

    Args:
        corpora: of a mixture that goes on as one, the names of those whose rows are others.
    """
    positions = positions_of(state)
    pass_index = 1 + max(position.pass_index for position in positions)
    lanes = []
    for position in positions:
        other = position.begin_other_data(pass_index)
        if corpora is not None:
            begin = position.stream_state  # none in the first window, and another in the stream of one corpus
            mixture = MixtureState.from_dict(begin) if isinstance(begin, dict) else MixtureState()
            used = sum(rows for rows, *_ in position.used_in_window.values())
            kept = {name: place for name, place in mixture.corpora.items() if name not in corpora}
            mixture = replace(mixture, rows=mixture.rows + used, corpora=kept)
            other = replace(other, stream_state=asdict(mixture), window=position.window + 1)
        lanes.append(other.to_dict())
    return {"next_batch": state["next_batch"], "lanes": lanes}
