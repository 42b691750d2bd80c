"""Shares, passes and stages of a mixture, the same on any number of ranks and workers, and over resumes."""

import json
import math
from collections import Counter
from itertools import islice
from typing import Any

import pytest
from datasets import Dataset, IterableDataset

from pipeline.config import DataConfig, make_section
from pipeline.data.batch_loader import BatchLoader
from pipeline.data.lanes import Lanes, Progress, begin_other_data, merge_states
from pipeline.data.mixture import CORPUS, MixedStream, Stage, count_rows, interleave, plan_stages
from pipeline.data.rows import BadRow
from pipeline.data_config import Until
from pipeline.errors import ConfigError, DataError
from tests.data.streams import collate, take_loaded

SIZES = {"clean": 60, "mined": 400, "back": 90}
START = {"clean": 100_000, "mined": 200_000, "back": 300_000}  # of the values of each, so that they tell the corpus
STAGES = (
    Stage({"clean": 0.5, "mined": 0.25, "back": 0.25}, Until(300)),
    Stage({"clean": 0.25, "mined": 0.75, "back": 0.0}, Until(1, "mined")),
    Stage({"clean": 0.0, "mined": 0.5, "back": 0.5}),
)


def parts(values: list[list[int]]):
    for part in values:
        for value in part:
            yield {"value": value}


def make_corpora(shards: int = 1) -> dict[str, Dataset | IterableDataset]:
    """One of the three is a stream."""
    corpora: dict[str, Dataset | IterableDataset] = {
        name: Dataset.from_dict({"value": [*range(START[name], START[name] + size)]}) for name, size in SIZES.items()
    }
    values = [*range(START["mined"], START["mined"] + SIZES["mined"])]
    corpora["mined"] = IterableDataset.from_generator(
        parts, gen_kwargs={"values": [values[n::shards] for n in range(shards)]}
    )
    return corpora


def encode(columns):
    rows = zip(columns["row"], columns["value"], strict=True)
    return [{"sample_id": row, "value": value, "lengths": (1 + value % 5, 1 + value % 3)} for row, value in rows]


def make_lanes(lanes: int = 1, rank: int = 0, ranks: int = 1, shards: int = 1, **options: Any) -> Lanes:
    settings: dict[str, Any] = {"stages": STAGES, "sizes": SIZES, "batch_rows": 8, "window": 40, "seed": 3} | options
    corpora = settings.pop("corpora", None) or make_corpora(shards)

    def make(lane: int) -> MixedStream:
        return MixedStream(
            corpora,
            settings.get("encode", encode),
            lambda feature: feature["lengths"],
            lane=lane,
            lanes=lanes,
            **{name: value for name, value in settings.items() if name != "encode"},
        )

    return Lanes(make, lanes, rank, ranks)


def train(lanes: int, ranks: int, workers: int, steps: int, state: dict | None = None, **options: Any):
    """Take the batches of some steps on all ranks, in the order of the micro-batches, and the state behind them."""
    loaders = []
    for rank in range(ranks):
        own = make_lanes(lanes, rank, ranks, **options)
        if state is not None:
            own.load_state_dict(json.loads(json.dumps(state)))
        loaders.append(BatchLoader(own, collate, num_workers=workers))
    taken = [take_loaded(loader, steps) for loader in loaders]
    batches = [batch for turn in zip(*taken, strict=True) for batch in turn]
    progress = Progress.of_all([loader.lanes.progress().as_numbers() for loader in loaders], SIZES)
    return batches, merge_states([loader.lanes.state_dict() for loader in loaders]), progress


def corpus_of(value: int) -> str:
    return next(name for name, start in START.items() if start <= value < start + 100_000)


def windows(lanes: Lanes, count: int) -> list[Counter]:
    """Return how many rows of each corpus the first windows of the first lane have."""
    found = islice(lanes.first.windows(lanes.first.position), count)
    return [Counter(feature[CORPUS] for batch in window.batches for feature in batch) for window in found]


def test_shares_are_those_that_were_asked_for():
    """Within four standard deviations of a sample of so many rows."""
    shares = {"clean": 0.1, "mined": 0.65, "back": 0.25}
    counted = sum(windows(make_lanes(stages=[Stage(shares)]), 100), Counter())
    total = counted.total()
    assert total == 100 * 40
    for name, share in shares.items():
        assert abs(counted[name] / total - share) < 4 * math.sqrt(share * (1 - share) / total)


def test_bad_rows_do_not_change_the_shares():
    """Nine of ten rows of one corpus are bad: its share is that of the rows that are left."""

    def is_bad(value: int) -> bool:
        return corpus_of(value) == "mined" and value % 10 > 0

    def find_bad(columns):
        return [
            BadRow(f"row {feature['sample_id']}", "bad") if is_bad(feature["value"]) else feature
            for feature in encode(columns)
        ]

    stages = [Stage({"clean": 0.5, "mined": 0.5, "back": 0.0})]
    skewed = windows(make_lanes(stages=stages, encode=find_bad, max_bad_rows=None), 30)
    assert skewed == windows(make_lanes(stages=stages), 30)
    with pytest.raises(DataError, match=r"data.mix.mined: row \d+: bad; fix or remove the row"):
        windows(make_lanes(stages=stages, encode=find_bad), 1)
    with pytest.raises(DataError, match=r"over data.mix.mined, where data.max_bad_rows=100; one: data.mix.mined: row"):
        windows(make_lanes(stages=stages, encode=find_bad, max_bad_rows=100), 10)


def test_bad_rows_are_bounded_in_each_pass():
    """Two of the sixty of a corpus, in ten passes over it."""

    def find_bad(columns):
        features = encode(columns)
        return [
            BadRow(f"row {feature['sample_id']}", "bad") if feature["value"] % 30 == 0 else feature
            for feature in features
        ]

    stages = [Stage({"clean": 1.0, "mined": 0.0, "back": 0.0})]
    lanes = make_lanes(stages=stages, encode=find_bad, max_bad_rows=2)
    *_, (_, position) = islice(lanes.first, 580 // 8)
    assert position.skipped_before >= 18
    with pytest.raises(DataError, match=r"2 bad rows in one pass over data.mix.clean"):
        list(islice(make_lanes(stages=stages, encode=find_bad, max_bad_rows=1).first, 580 // 8))


def test_counts_stay_when_shares_change():
    """Where in the middle of a window another corpus takes over, the rows that were used are those of before."""
    before, after = ([Stage(dict.fromkeys(SIZES, 0.0) | {name: 1.0})] for name in ("clean", "back"))
    for steps in (2, 7):  # in the first window, and in the second
        _, state, _ = train(1, 1, 0, steps, stages=before)
        _, state, progress = train(1, 1, 0, 4, begin_other_data(state, []), stages=after)
        assert {name: corpus.rows for name, corpus in progress.corpora.items()} == {
            "clean": 8 * steps,
            "mined": 0,
            "back": 32,
        }
        assert state["lanes"][0]["stream_state"]["rows"] == 8 * steps  # at the beginning of the window in use


@pytest.mark.parametrize("lanes, shards", [(1, 1), (4, 1), (4, 8)])
def test_the_batches_are_the_same_on_any_number_of_ranks(lanes, shards):
    whole, *_ = train(lanes, 1, 0, 96, shards=shards)
    for ranks in (2, 3, 4):
        assert train(lanes, ranks, 0, 96 // ranks, shards=shards)[0] == whole


@pytest.mark.parametrize("lanes", [1, 3])
def test_each_corpus_is_read_whole_in_each_pass(lanes):
    batches, *_ = train(lanes, 1, 0, 200, stages=[Stage({"clean": 0.4, "mined": 0.2, "back": 0.4})])
    counts = Counter(value for batch in batches for value in batch)
    for name in ("clean", "back"):
        of_corpus = [counts[value] for value in range(START[name], START[name] + SIZES[name])]
        assert max(of_corpus) - min(of_corpus) <= 2 and min(of_corpus) >= 5  # lanes may be in different passes
    assert max(counts[value] for value in range(START["mined"], START["mined"] + SIZES["mined"])) <= 1


@pytest.mark.parametrize("steps", [3, 37, 38, 39, 60, 95])
def test_a_resume_in_the_middle_of_a_stage_and_at_its_edge(steps):
    """The first stage ends with batch 38 of one lane."""
    whole, _, counted = train(1, 1, 0, 120)
    first, state, _ = train(1, 1, 0, steps)
    second, _, again = train(1, 1, 0, 120 - steps, state)
    assert first + second == whole
    assert again == counted


@pytest.mark.parametrize("before, after", [((1, 2), (2, 0)), ((4, 0), (1, 2)), ((2, 1), (3, 0))])
def test_other_ranks_and_workers_go_on_with_the_same_batches(before: tuple[int, int], after: tuple[int, int]):
    whole, *_ = train(4, 1, 0, 120)
    first, state, _ = train(4, *before, 12)
    second, *_ = train(4, *after, 15, state)
    assert first + second == whole[: len(first) + len(second)]


def test_counts_are_of_what_was_used():
    for ranks in (1, 2, 3):
        batches, _, progress = train(4, ranks, 0, 24 // ranks)
        used = Counter(corpus_of(value) for batch in batches for value in batch)
        assert {name: corpus.rows for name, corpus in progress.corpora.items()} == {name: used[name] for name in SIZES}
        tokens = sum(1 + value % 5 + 1 + value % 3 for batch in batches for value in batch)
        assert sum(corpus.tokens for corpus in progress.corpora.values()) == tokens


@pytest.mark.parametrize("lanes", [1, 3])
def test_a_stage_ends_where_it_should(lanes):
    """300 rows over all lanes, then until a pass over mined is done since the beginning of the run."""
    for lane in range(lanes):
        stream = make_lanes(lanes, stages=STAGES).streams[lane]
        rows, stages = 0, []
        before: dict[str, Any] = {}
        for window in islice(stream.windows(stream.position), 40):
            stages.append(window.end_state["stage"])
            rows += sum(map(len, window.batches))
            if stages[-1] == 0:
                assert rows <= 300 // lanes
            if stages[-1] == 2 and 2 not in stages[:-1]:
                assert before["pass_index"] == 1
            before = window.end_state["corpora"]["mined"]
        assert stages == sorted(stages) and {*stages} == {0, 1, 2}


def test_opustrainers_example():
    """start until clean 2, mid until medium 1, end: the epochs of a stage are counted from its beginning on.

    https://github.com/hplt-project/OpusTrainer/blob/main/README.md
    """
    data = make_section(
        "data",
        DataConfig,
        mix={"clean": {"path": "clean"}, "medium": {"path": "medium"}, "dirty": {"path": "dirty"}},
        stages=[
            {"weights": {"clean": 0.8, "medium": 0.2, "dirty": 0}, "until": "2 more passes of clean"},
            {"weights": {"clean": 0.6, "medium": 0.3, "dirty": 0.1}, "until": "1 more pass of medium"},
            {"weights": {"clean": 0.4, "medium": 0.3, "dirty": 0.3}},
        ],
    )
    sizes = {"clean": 300, "medium": 120, "dirty": 500}
    stages = plan_stages(data, sizes)
    corpora = {name: Dataset.from_dict({"value": [*range(size)]}) for name, size in sizes.items()}
    stream = make_lanes(corpora=corpora, stages=stages, sizes=sizes, window=10).first
    per_stage: dict[int, Counter] = {0: Counter(), 1: Counter(), 2: Counter()}
    for window in islice(stream.windows(stream.position), 300):
        per_stage[window.end_state["stage"]].update(feature[CORPUS] for batch in window.batches for feature in batch)
    assert 600 <= per_stage[0]["clean"] < 610 and per_stage[0]["dirty"] == 0
    assert 120 <= per_stage[1]["medium"] < 130
    for number, stage in enumerate(stages):
        total = per_stage[number].total()
        for name, share in stage.shares.items():
            assert abs(per_stage[number][name] / total - share) <= 4 * math.sqrt(share * (1 - share) / total) + 0.01


def test_shares_by_size_and_temperature():
    mix: dict[str, Any] = {"large": {"path": "a"}, "small": {"path": "b", "rows": 100, "streaming": True}}
    sizes = {"large": 10_000, "small": 100}

    def shares(**settings) -> dict[str, float]:
        return plan_stages(make_section("data", DataConfig, mix=mix, **settings), sizes)[0].shares

    assert shares() == pytest.approx({"large": 10_000 / 10_100, "small": 100 / 10_100})
    assert shares(temperature=2.0) == pytest.approx({"large": 100 / 110, "small": 10 / 110})
    assert shares(temperature=1e9) == pytest.approx({"large": 0.5, "small": 0.5})
    assert shares(temperature=1e-9) == pytest.approx({"large": 1.0, "small": 0.0})
    assert shares(weights={"large": 1e308, "small": 1e308}) == pytest.approx({"large": 0.5, "small": 0.5})


def test_sizes_that_are_not_known_or_wrong():
    data = make_section("data", DataConfig, mix={"a": {"path": "a"}, "b": {"path": "b", "rows": 3}})
    rows = Dataset.from_dict({"value": [1, 2]})
    assert count_rows(data, {"a": rows.to_iterable_dataset(), "b": rows}) == {"a": None, "b": 2}
    with pytest.raises(ConfigError, match=r"data.mix.a.rows: shares by size need the number of rows of this stream"):
        plan_stages(data, {"a": None, "b": 3})
    with pytest.raises(ConfigError, match=r"data.mix.b.rows: 3 is given, and there are 2; leave it out"):
        plan_stages(data, {"a": 1, "b": 2})


def test_corpora_without_rows_to_use():
    empty = make_corpora() | {"clean": IterableDataset.from_generator(parts, gen_kwargs={"values": [[]]})}
    with pytest.raises(DataError, match=r"data.mix.clean: there are no training rows$"):
        windows(make_lanes(corpora=empty), 1)
    few = make_corpora() | {"clean": Dataset.from_dict({"value": [START["clean"]]})}
    with pytest.raises(
        DataError, match=r"data.mix.clean: there are no training rows for one of data.lanes=2; set fewer"
    ):
        take_loaded(BatchLoader(make_lanes(2, corpora=few), collate), 8)


def test_other_rows_of_one_corpus():
    """It begins anew; the others go on, in a window of their own."""
    batches, state, _ = train(1, 1, 0, 50)
    other = begin_other_data(state, ["clean"])
    (lane,) = other["lanes"]
    assert {*lane["stream_state"]["corpora"]} == {"mined", "back"}
    after, _, progress = train(1, 1, 0, 20, other)
    used = Counter(corpus_of(value) for batch in [*batches, *after] for value in batch)
    assert progress.corpora["mined"].rows == used["mined"] > 0
    assert begin_other_data(state)["lanes"][0]["stream_state"] is None


def test_rows_for_a_tokenizer_have_the_shares():
    rows = {"a": [f"a{n}" for n in range(10)], "b": [f"b{n}" for n in range(100)], "c": ["c"]}
    readers = {name: lambda name=name: iter(rows[name]) for name in rows}
    mixed = [*interleave(readers, {"a": 0.5, "b": 0.5, "c": 0.0})]
    assert mixed[:4] == ["a0", "b0", "a1", "b1"]
    assert Counter(text[0] for text in mixed) == {"a": 101, "b": 100} or Counter(text[0] for text in mixed) == {
        "a": 100,
        "b": 100,
    }
    assert {*rows["a"]} | {*rows["b"]} == {*mixed}
    assert [*interleave({"a": lambda: iter(())}, {"a": 1.0})] == []


def test_noise_is_that_of_a_corpus():
    def noise(row, generator):
        return {"value": row["value"] + 60_000}  # the same lengths

    plain = train(1, 1, 0, 40)[0]
    noisy = train(1, 1, 0, 40, noise={"mined": noise})[0]
    is_mined = [[200_000 <= value < 300_000 for value in batch] for batch in plain]
    assert any(map(any, is_mined)) and noisy != plain
    assert [sorted(value - 60_000 * (260_000 <= value < 300_000) for value in batch) for batch in noisy] == [
        sorted(batch) for batch in plain
    ]
