"""Which rows each rule takes, and counts that are the same on any number of ranks and workers, and over resumes."""

import json
import random
from collections import Counter
from functools import cache
from itertools import islice
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import pytest
from datasets import Dataset, IterableDataset

from pipeline.data import filters as module
from pipeline.data.batch_loader import BatchLoader
from pipeline.data.batch_stream import BatchStream, Position
from pipeline.data.filters import (
    READ,
    RULES,
    Duplicates,
    Filters,
    add_filtered,
    describe,
    find_duplicates,
    find_texts,
    hash_held_out,
)
from pipeline.data.lanes import Lanes, Progress, begin_other_data, merge_states
from pipeline.data.mixture import MixedStream, Stage
from pipeline.data.rows import PLACE, PROBLEM, BadRow
from pipeline.data_config import FiltersConfig
from pipeline.errors import DataError
from tests.data.streams import collate, take_loaded

PAIR = ("source", "target")


def lengths(feature) -> tuple[int, int]:
    return len(feature["source"].split()), len(str(feature["target"]).split())


def reason(source: Any, target: Any, columns: tuple[str, ...] = PAIR, is_bad: bool = False, **rules):
    """Say which rule takes a pair, and why."""
    row = {"source": source, "target": target, "row": 0}
    feature = BadRow("row 0", "too long") if is_bad else row
    return Filters(FiltersConfig(**rules), lengths, columns).find_reason(row, feature)


def takes(source: Any, target: Any, **rules) -> bool:
    taken = reason(source, target, **rules)
    assert taken is None or taken[0] == next(iter(rules))
    return taken is not None


def test_the_rules_are_those_of_the_config():
    assert [*RULES] == [*FiltersConfig.model_fields]
    assert FiltersConfig().rules == {}


def test_identical_sides():
    assert reason(" a  b\n", "a b", drop_identical=True) == ("drop_identical", "source and target are the same")
    assert not takes("a b", "A b", drop_identical=True)
    assert takes("a", ["a", "b"], drop_identical=True)  # the first of several targets is the one that is learned
    assert not takes("a", ["b", "a"], drop_identical=True)


def test_long_words():
    assert reason("a", "b " + "c" * 11, max_word_length=10) == (
        "max_word_length",
        "target has a word of 11 characters: 'ccccccccccc'",
    )
    assert not takes("a" * 10 + " " + "b" * 10, "c", max_word_length=10)


@pytest.mark.parametrize(
    "text, scripts, is_taken",
    [
        ("hello", {"Latin": 0.8}, False),
        ("привет мир hello", {"Cyrillic": 0.64}, False),  # 9 of 14
        ("привет мир hello", {"Cyrillic": 0.65}, True),
        ("123 !", {"Latin": 1.0}, False),  # no letters, none of another script
        ("Größe № 5, ñandú", {"Latin": 1.0}, False),
        ("ラーメンを食べる", {"Han+Hiragana+Katakana": 1.0}, False),  # the long vowel is of no script
        ("ラーメンを食べる", {"Hiragana": 0.5}, True),
        ("abc где", {"Latin": 0.4, "Cyrillic": 0.4}, False),
        ("abc", {"Latin": 0.4, "Cyrillic": 0.4}, True),
    ],
)
def test_scripts(text, scripts, is_taken):
    assert takes("x", text, min_script_share={"target": scripts}) == is_taken
    assert takes(text, "x", min_script_share={"source": scripts}) == is_taken


def test_scripts_say_how_many_letters():
    assert reason("да no", "x", min_script_share={"source": {"Cyrillic": 0.8}}) == (
        "min_script_share",
        "2 of 4 letters of source are Cyrillic",
    )


@pytest.mark.parametrize(
    "source, target, is_taken",
    [
        ("12 dogs", "12 chiens", False),
        ("12 dogs", "21 chiens", True),
        ("12 dogs", "chiens", True),
        ("no number", "aucun", False),
        ("2 of 3", "von 3 Hunden 2", False),
        ("2 and 2", "2", True),
        ("1,000 and 1,234.5", "1.000 und 1.234,5", False),
        ("1,000,000", "1 000 000", False),  # narrow no-break spaces
        ("12 345 people", "12.345 Leute", False),
        ("in 1990 300 people", "300 Leute im Jahr 1990", False),
        ("10:30 on 12/03/2024", "12.03.2024 um 10.30", False),
        ("5 May", "05.5", True),
        ("July 05", "5 juillet", False),
        ("1,234", "١٬٢٣٤", False),
        ("20", "２０", False),
        ("3", "३", False),
        ("1,00,000", "100,000", False),
        ("half ½ m²", "½ m", False),  # not digits of a number
        ("9" * 5000, "9" * 5000, False),
    ],
)
def test_digits(source, target, is_taken):
    assert takes(source, target, match_digits=True) == is_taken


def test_digits_say_which():
    assert reason("2 3 3", "3 4", match_digits=True) == (
        "match_digits",
        "numbers only in source: 2 3; only in target: 4",
    )


def test_lengths():
    assert takes("a a a a", "b", max_length_ratio=3) and takes("a", "b b b b", max_length_ratio=3)
    assert not takes("a a a", "b", max_length_ratio=3)
    assert reason("a a a a", "b", max_length_ratio=3.5) == ("max_length_ratio", "source has 4 tokens, and target 1")


def test_held_out_pairs():
    """All targets of a source count; a source with another target is another pair."""
    features: list[dict[str, Any]] = [{"source": "a  b", "target": ["c", "d "]}, {"source": "e", "target": "f"}]
    for columns, others in ((PAIR, {("a b", "x"): False}), (("source",), {("a b", "x"): True})):
        filters = Filters(FiltersConfig(drop_held_out=True), lengths, columns, hash_held_out(features, columns))
        expected = {("a b", "c"): True, (" a b", "d"): True, ("e", "f"): True, ("ab", "c"): False} | others
        for (source, target), is_taken in expected.items():
            row = {"source": source, "target": target}
            assert (filters.find_reason(row, row) is not None) == is_taken


def test_the_first_rule_counts():
    assert reason("a" * 9, "a" * 9, max_word_length=3, drop_identical=True) == (
        "drop_identical",
        "source and target are the same",
    )


def test_bad_rows():
    """A row without its texts stays bad; one that is too long can be taken by what it says."""
    unreadable: list[Any] = [None, 3, " ", []]
    for source in unreadable:
        assert reason(source, source, drop_identical=True, max_word_length=1) is None
    assert find_texts({"source": "a", "target": "a", PROBLEM: "broken"}, PAIR) is None
    assert reason("a a a", "b", is_bad=True, max_length_ratio=2) is None
    assert reason("a", "a", is_bad=True, max_length_ratio=2, drop_identical=True) is not None
    assert reason("aaa", 5, ("source",), max_word_length=2) is not None  # of a classifier


@pytest.mark.parametrize("by_place", [False, True])
def test_duplicates(monkeypatch, tmp_path, by_place):
    """As a search that holds all rows in memory finds them; blocks are small, so that buckets are written in parts."""
    monkeypatch.setattr(module, "BLOCK", 64)
    generator = random.Random(0)
    rows = [
        {"source": f"a {generator.randrange(40)}", "target": generator.choice(["b", ["b", "c"], " b", None, 3])}
        for _ in range(1_000)
    ]
    rows = [{**row, "lang": generator.choice(["de", "fr"]), PLACE: f"f:{number}"} for number, row in enumerate(rows)]
    seen, expected = set(), set()
    for number, row in enumerate(rows):
        target = row["target"][0] if isinstance(row["target"], list) else row["target"]
        if not isinstance(target, str):
            continue  # a bad row
        key = (row["source"], target.strip(), row["lang"])
        expected |= {number} if key in seen else set()
        seen.add(key)
    duplicates = find_duplicates(rows, PAIR, by_place, tmp_path)
    assert {number for number, row in enumerate(rows) if {**row, "row": number} in duplicates} == expected
    assert len(duplicates) == len(expected) > 100 and not [*tmp_path.iterdir()]
    assert len(find_duplicates([], PAIR, by_place, tmp_path)) == 0


# ---- in a stream of batches

ROWS = [
    {"source": f"a {n % 40}", "target": f"a {n % 40}" if n % 5 == 0 else "b " * (1 + n % 40 % 7)} for n in range(100)
]
CONFIG = FiltersConfig(drop_identical=True, max_length_ratio=2, drop_duplicates=True)


def generate(shards):
    for numbers in shards:
        yield from ({**ROWS[number], PLACE: f"file:{number}"} for number in numbers)


def make_rows(kind: str) -> Any:
    numbers = [[*range(first, 100, 4)] for first in range(4)]
    return (
        Dataset.from_list(ROWS)
        if kind == "dataset"
        else IterableDataset.from_generator(generate, gen_kwargs={"shards": numbers})
    )


def encode(columns):
    rows = zip(columns["row"], columns["source"], columns["target"], strict=True)
    return [
        BadRow(f"row {row}", "bad")
        if target.strip() == "b b b b b b"
        else {"sample_id": row, "source": s, "target": target}
        for row, s, target in rows
    ]


def collate_rows(features):
    return collate([{"value": int(feature["source"].split()[1])} for feature in features])


@cache
def make_filters(by_place: bool) -> Filters:
    rows = [{**row, PLACE: f"file:{number}"} for number, row in enumerate(ROWS)]
    duplicates = find_duplicates(rows, PAIR, by_place, Path(gettempdir()))
    return Filters(CONFIG, lengths, duplicates=duplicates)


def make_lanes(kind: str, lanes: int, rank: int = 0, ranks: int = 1, **options: Any) -> Lanes:
    settings: dict[str, Any] = {"batch_rows": 4, "window": 20, "seed": 1, "lanes": lanes, "max_bad_rows": None}
    settings |= options
    if kind == "mix":
        settings |= {"stages": [Stage({"one": 0.5, "two": 0.5})], "sizes": {"one": 100, "two": None}}
        settings["filters"] = {"one": make_filters(False), "two": make_filters(True)}
        rows: Any = {"one": make_rows("dataset"), "two": make_rows("stream")}
    else:
        settings["filters"] = {"": make_filters(kind == "stream")}
        rows = make_rows(kind)
    stream = MixedStream if kind == "mix" else BatchStream
    return Lanes(lambda lane: stream(rows, encode, lengths, lane=lane, **settings), lanes, rank, ranks)


def expected_counts() -> tuple[dict[str, int], int]:
    """Count what each rule takes of all rows, and the bad rows that are left, without a stream."""
    counts, num_bad, seen = Counter({READ: len(ROWS)}), 0, set()
    for row, feature in zip(ROWS, encode({"row": [*range(100)], **Dataset.from_list(ROWS)[:]}), strict=True):
        texts = row["source"].strip(), row["target"].strip()
        source, target = (len(text.split()) for text in texts)
        is_bad = isinstance(feature, BadRow)
        if texts[0] == texts[1]:
            counts["drop_identical"] += 1
        elif not is_bad and max(source, target) > 2 * min(source, target):
            counts["max_length_ratio"] += 1
        elif texts in seen:
            counts["drop_duplicates"] += 1
        else:
            num_bad += is_bad
        seen.add(texts)
    assert {*counts} == {READ, *CONFIG.rules} and num_bad > 0
    return dict(counts), num_bad


@pytest.mark.parametrize("kind", ["dataset", "stream"])
def test_a_pass_counts_every_row_once(kind):
    stream = make_lanes(kind, 1).first
    starts = stream.with_positions(stream.windows(Position()), Position())
    begin = next(start for start, _, _ in starts if start.pass_index == 1)
    assert (begin.filtered[""], begin.skipped_before) == expected_counts()


def test_filters_do_not_see_noise():
    """With noise by which every rule would take every row, each pass counts, and leaves, what it does without."""

    def noise(row, generator):
        return {"source": "b " * 50, "target": "b " * 50} if generator.random() < 0.9 else {}

    plain, noisy = (make_lanes("dataset", 1, noise=each).first.windows(Position()) for each in ({}, {"": noise}))
    windows = [*islice(zip(plain, noisy, strict=True), 10)]  # two passes
    for before, after in windows:
        assert before.filtered == after.filtered and before.bad_rows == after.bad_rows
        numbers = [sorted(row["sample_id"] for batch in window.batches for row in batch) for window in (before, after)]
        assert numbers[0] == numbers[1]
    sources = [row["source"] for _, window in windows for batch in window.batches for row in batch]
    assert 0.8 < sum(source.startswith("b") for source in sources) / len(sources) < 1


def steps(kind: str, ranks: int, workers: int, count: int, state: dict | None = None):
    """Take some steps on all ranks; return their batches, the state behind them, and the progress of all."""
    loaders = []
    for rank in range(ranks):
        lanes = make_lanes(kind, 2, rank, ranks)
        if state is not None:
            lanes.load_state_dict(state)
        loaders.append(BatchLoader(lanes, collate_rows, num_workers=workers))
    batches = [batch for turn in zip(*(take_loaded(each, count) for each in loaders), strict=True) for batch in turn]
    names = loaders[0].lanes.corpora
    progress = Progress.of_all([loader.lanes.progress().as_numbers() for loader in loaders], names)
    state = json.loads(json.dumps(merge_states([loader.lanes.state_dict() for loader in loaders])))
    return batches, state, progress


@pytest.mark.parametrize("kind", ["dataset", "stream", "mix"])
def test_counts_are_exact_on_ranks_and_over_resumes(kind):
    whole, state, progress = steps(kind, 1, 0, 40)
    assert sum(progress.filtered["two" if kind == "mix" else ""].values()) > 100
    others = [steps(kind, 2, 0, 20), *([steps(kind, 1, 2, 40)] if kind == "mix" else [])]
    for first in (1, 7, 22):
        begun, middle, before = steps(kind, 1, 0, first)
        rest, end, after = steps(kind, 1, 0, 40 - first, middle)
        assert all(before.filtered[name][READ] <= after.filtered[name][READ] for name in before.filtered)
        others.append((begun + rest, end, after))
    for batches, other_state, other in others:
        assert (batches, other_state, other) == (whole, state, progress)


def test_counts_stay_when_the_rows_are_others():
    _, state, progress = steps("dataset", 1, 0, 9)
    lanes = make_lanes("dataset", 2)
    lanes.load_state_dict(begin_other_data(state))
    assert lanes.progress().filtered == progress.filtered


def test_without_filters_a_state_is_as_before():
    assert not {"filtered", "filtered_in_window"} & Position().to_dict().keys()
    counts = {"": {READ: 3, "drop_identical": 1}}
    position = Position(filtered=counts, filtered_in_window=counts)
    assert Position.from_dict(json.loads(json.dumps(position.to_dict()))) == position


@pytest.mark.parametrize("kind", ["dataset", "mix"])
def test_a_filter_that_takes_every_row(monkeypatch, kind):
    monkeypatch.setitem(RULES, "drop_identical", module.Rule(lambda candidate, value: "it is a row"))
    which, counted = ("", r"\d+") if kind == "mix" else ("none of the 50 training rows", "50")
    with pytest.raises(DataError, match=rf"{which}.*data.filters took {counted} of {counted}: \d+ by drop_identical"):
        next(make_lanes(kind, 2).first.windows(Position())) if kind == "mix" else next(iter(make_lanes(kind, 2).first))


def test_counts_add_up():
    total = add_filtered({"a": {READ: 2, "drop_identical": 1}}, {}, {"a": {READ: 3}, "b": {READ: 1}})
    assert total == {"a": {READ: 5, "drop_identical": 1}, "b": {READ: 1}}
    assert describe(total["a"]) == "data.filters took 1 of 5: 1 by drop_identical"
    assert describe(total["b"]) == describe({}) == ""


def test_nothing_is_a_duplicate_of_nothing():
    assert {"row": 0} not in Duplicates()
