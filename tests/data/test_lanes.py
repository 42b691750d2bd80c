"""Every row once a pass, the same batches on any number of ranks and workers, and a resume at any step."""

import gc
import json
import random
from collections import Counter
from dataclasses import asdict, replace
from itertools import islice

import psutil
import pytest
from datasets import Dataset, IterableDataset

from pipeline.data.batch_loader import BatchLoader
from pipeline.data.batch_stream import BatchStream, Position
from pipeline.data.lanes import Deal, Lanes, Progress, begin_other_data, merge_states
from pipeline.errors import DataError
from tests.data.streams import KINDS, collate, encode, make_lanes, make_stream, odd, take, take_loaded


def train(kind: str, lanes: int, ranks: int, workers: int, steps: int, state: dict | None = None, **options):
    """Take the batches of some steps on all ranks, in the order of the micro-batches, and the state behind them."""
    loaders = []
    for rank in range(ranks):
        own = make_lanes(kind, lanes, rank, ranks, **options)
        if state is not None:
            own.load_state_dict(json.loads(json.dumps(state)))
        loaders.append(BatchLoader(own, collate, num_workers=workers))
    taken = [take_loaded(loader, steps) for loader in loaders]
    batches = [batch for turn in zip(*taken, strict=True) for batch in turn]
    return batches, merge_states([loader.lanes.state_dict() for loader in loaders])


@KINDS
def test_one_lane_is_a_stream(kind):
    assert train(kind, 1, 1, 0, 90)[0] == take(make_stream(kind), 90)


@pytest.mark.parametrize("lanes", [1, 3, 4])
@KINDS
def test_the_batches_are_the_same_on_any_number_of_ranks(kind, lanes):
    whole, _ = train(kind, lanes, 1, 0, 96)
    for ranks in (2, 3, 4, 8):
        assert train(kind, lanes, ranks, 0, 96 // ranks)[0] == whole


@pytest.mark.parametrize("lanes", [2, 4, 7])
@KINDS
def test_every_row_once_a_pass(kind, lanes):
    """Whether the lanes have shards of their own, as two and four have here, or share them."""
    streams = [make_stream(kind, lane=lane, lanes=lanes) for lane in range(lanes)]
    rows: dict[int, list[int]] = {0: [], 1: []}
    for stream in streams:
        for batch, position in islice(iter(stream), 60):
            if position.pass_index in rows:
                rows[position.pass_index] += [feature["value"] for feature in batch]
    assert sorted(rows[0]) == sorted(rows[1]) == list(range(100))
    assert isinstance(streams[0].lane_rows.rows, Dataset) or streams[0].lane_rows.has_shards == (lanes in (2, 4))


@pytest.mark.parametrize(
    "lanes, before, after",
    [(1, (1, 0), (2, 2)), (1, (2, 4), (3, 0)), (4, (4, 0), (1, 2)), (4, (1, 3), (2, 2)), (4, (3, 0), (4, 2))],
)
@KINDS
def test_other_ranks_and_workers_go_on_with_the_same_batches(
    kind, lanes, before: tuple[int, int], after: tuple[int, int]
):
    """(ranks, loader workers) before and after a resume at the end of a step, in the second pass."""
    whole, _ = train(kind, lanes, 1, 0, 120)
    first, state = train(kind, lanes, *before, 12)
    second, _ = train(kind, lanes, *after, 15, state)
    assert first + second == whole[: len(first) + len(second)]


@KINDS
def test_resuming_at_any_step(kind):
    whole, _ = train(kind, 4, 2, 0, 40)
    for steps in range(1, 36, 3):
        _, state = train(kind, 4, 2, 0, steps)
        assert train(kind, 4, 2, 0, 4, state)[0] == whole[2 * steps : 2 * steps + 8]


def test_a_loader_that_is_asked_again_goes_on():
    loader = BatchLoader(make_lanes("stream", 4, 1, 2), collate)
    parts = [batch for _ in range(3) for batch in take_loaded(loader, 7)]
    assert parts == take_loaded(BatchLoader(make_lanes("stream", 4, 1, 2), collate), 21)


def test_who_prepares_what():
    """Four lanes: two ranks have two each; three ranks all of them; eight ranks one, which two of them share."""
    assert [Deal(4, rank, 2).own for rank in (0, 1)] == [[0, 2], [1, 3]]
    assert [Deal(4, rank, 3).own for rank in range(3)] == [[0, 3, 2, 1], [1, 0, 3, 2], [2, 1, 0, 3]]
    assert [Deal(4, rank, 8).own for rank in range(8)] == [[0], [1], [2], [3]] * 2
    assert Deal(4, 0, 2, begin=3).own == [3, 1]
    for deal in (Deal(4, 1, 2), Deal(4, 2, 3, begin=5), Deal(6, 3, 4), Deal(3, 4, 8, begin=1)):
        takes = [deal.take(turn) for turn in range(60)]
        for lane in deal.own:
            for number in range(6):
                turn = next(turn for turn, (other, batch) in enumerate(takes) if other == lane and batch >= number)
                assert deal.first_turn(lane, number) == turn


def test_counts_are_sums_over_lanes():
    """Half of the rows are bad; the bound holds for a pass over all lanes, and a lane that breaks it alone says so."""
    for ranks in (1, 2, 3, 8):
        own = [make_lanes("dataset", 4, rank, ranks, encode=odd, max_bad_rows=None) for rank in range(ranks)]
        for lanes in own:
            take_loaded(BatchLoader(lanes, collate), 12 // ranks)
        progress = Progress.of_all([lanes.progress().as_numbers() for lanes in own])
        assert progress.skipped_rows == progress.skipped_in_pass == 50 and progress.pass_index == 0
        assert progress.epoch == pytest.approx(min(lanes.progress().epoch for lanes in own))
    with pytest.raises(DataError, match=r"bad rows in one pass, where data.max_bad_rows=9"):
        take_loaded(BatchLoader(make_lanes("dataset", 4, encode=odd, max_bad_rows=9), collate), 30)


def test_other_data_begin_in_the_same_pass():
    _, state = train("dataset", 4, 2, 0, 13)
    before = [position["pass_index"] for position in state["lanes"]]
    other = begin_other_data(state)
    assert {position["pass_index"] for position in other["lanes"]} == {max(before) + 1}
    batches, _ = train("dataset", 4, 2, 0, 12, other)
    assert max(Counter(value for batch in batches for value in batch).values()) == 1


def test_a_lane_without_rows_is_an_error():
    rows = Dataset.from_dict({"value": [0, 1]})

    def make(lane):
        return BatchStream(rows, encode, lambda each: each["lengths"], batch_rows=4, lane=lane, lanes=3)

    with pytest.raises(DataError, match=r"there are no training rows for one of data.lanes=3; set fewer"):
        take_loaded(BatchLoader(Lanes(make, 3), collate), 3)


def test_lanes_are_padded_as_little_as_one():
    """Within two points, where their windows hold as many rows."""
    generator = random.Random(0)
    lengths = [
        (source, max(1, source + generator.randint(-3, 3))) for source in generator.choices(range(3, 60), k=8_000)
    ]
    rows = Dataset.from_dict({"value": list(range(len(lengths)))})

    def share_of_tokens(lanes: int) -> float:
        real = places = 0
        for lane in range(lanes):
            stream = BatchStream(
                rows,
                lambda columns: [{"lengths": lengths[value]} for value in columns["value"]],
                lambda each: each["lengths"],
                batch_rows=1,
                batch_tokens=1_000,
                window=1_000,
                lane=lane,
                lanes=lanes,
            )
            for batch, _ in islice(iter(stream), stream.count_batches()):
                real += sum(sum(each["lengths"]) for each in batch)
                places += len(batch) * sum(max(side) for side in zip(*(each["lengths"] for each in batch), strict=True))
        return real / places

    assert share_of_tokens(8) >= share_of_tokens(1) - 0.02


def test_web_scale():
    """A billion rows in 10,000 shards, eight lanes: a small state, flat memory, and a resume behind 900 million."""

    read = []

    def shard(shards):
        for number in shards:
            for index in range(100_000):
                read.append(number)
                yield {"value": (number * 100_000 + index) % 100}

    rows = IterableDataset.from_generator(shard, gen_kwargs={"shards": list(range(10_000))})

    def make(lane):
        return BatchStream(rows, encode, lambda each: each["lengths"], batch_rows=100, window=5_000, lane=lane, lanes=8)

    far = Position(stream_state=(1125, None, 112_500_000), first_row=112_500_000, window=22_500, first_batch=1_125_000)
    lanes = Lanes(make, 8, 3, 8)
    lanes.load_state_dict({"next_batch": 9_000_000, "lanes": [asdict(replace(far, next_batch=1_125_000))] * 8})
    batches = iter(BatchLoader(lanes, collate))
    sizes = []
    for _ in range(5):
        assert len(list(islice(batches, 400))) == 400
        read.clear()
        gc.collect()
        sizes.append(psutil.Process().memory_info().rss)
    assert max(sizes) <= 1.05 * sizes[0]
    state = json.loads(json.dumps(merge_states([Lanes(make, 8, rank, 8).state_dict() for rank in range(8)])))
    assert len(json.dumps(state)) < 1_000_000
    own = lanes.state_dict()
    resumed = Lanes(make, 8, 3, 8)
    state["next_batch"], state["lanes"][3] = own["next_batch"], own["lanes"][3]
    resumed.load_state_dict(state)
    read.clear()
    following = next(iter(BatchLoader(resumed, collate)))["values"].tolist()
    assert len(read) <= 100_000 + 1.2 * 5_000  # at most one shard, up to the window, and the window
    assert following == next(batches)["values"].tolist()
