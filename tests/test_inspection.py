"""What is found in data that have one of each fault."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config
from pipeline.inspection import inspect, quantiles
from pipeline.tasks.config_loading import parse_config

GOOD = [{"source": f"number {n} is a word", "target": f"le nombre {n} est un mot"} for n in range(30)]
FAULTY: list[dict[str, Any]] = [
    GOOD[3],  # 30: equal to row 3
    {"source": "number 4  is a word ", "target": "tout autre chose"},  # 31: row 4 with another target, but for spaces
    {"source": "same", "target": "same"},
    {"source": None, "target": "rien"},  # 33
    {"source": "", "target": "rien"},
    {"source": "a " * 60, "target": "trop long"},  # 35: for max_source_length
    {"source": "Ã©tÃ©", "target": "Q&amp;amp;A"},
    {"source": "it is 7 now", "target": "il est 8 heures"},
    {"source": "held out", "target": "mis de côté"},
    {"source": "held out", "target": "mis à part"},  # 39
]
HELD_OUT = [{"source": "held out", "target": "mis de côté"}, {"source": "not seen", "target": "pas vu"}]


def write(folder: Path, **splits: list[dict[str, Any]]) -> str:
    folder.mkdir()
    for name, rows in splits.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(folder)


@pytest.fixture
def pairs(tmp_path) -> str:
    return write(tmp_path / "data", train=GOOD + FAULTY, validation=HELD_OUT)


def config_of(path: str, task: str = "sequence_to_sequence", **sections) -> Config:
    values: dict[str, Any] = {"data": {"path": path, "max_source_length": 50}, "tokenizer": {"kind": "bpe"}}
    for name, keys in sections.items():
        values[name] = values.get(name, {}) | keys
    return parse_config({"task": task, **values, "training": {"output_dir": f"{path}/../run"}})


def rows_of(found: Any) -> list[str]:
    """The last part of the places of all examples: numbers of rows from 1, as lines."""
    return [example.place.split(":")[-1].removeprefix("row ") for example in found.examples]


def test_pairs(pairs):
    inspection = inspect(config_of(pairs))
    train, validation = inspection.sets
    assert (train.place, train.rows, train.is_whole) == ("train", 40, True)
    assert (validation.place, validation.rows, validation.bad.count) == ("validation", 2, 0)
    assert train.bad.count == 3 and rows_of(train.bad) == ["34", "35", "36"]
    assert "data.max_source_length=50" in train.bad.examples[2].reason
    assert train.lengths["source"].over == 1 and sum(train.lengths["source"].counts.values()) == 38
    assert train.lengths["target"].limit == 128 and train.lengths["target"].over == 0
    assert train.repeated.rows.count == 1 and rows_of(train.repeated.rows) == ["31"]
    assert train.repeated.rows.examples[0].reason.endswith(":4")
    assert train.repeated.sources.count == 2 and rows_of(train.repeated.sources) == ["32", "40"]
    assert "tout autre chose" in train.repeated.sources.examples[0].texts["target"]
    overlap = train.overlap["validation"]
    assert (overlap.rows.count, overlap.held_out_rows) == (1, 1) and rows_of(overlap.rows) == ["39"]
    assert (overlap.sources.count, overlap.held_out_sources) == (2, 1)
    assert {name: found.count for name, found in train.faults.items()} == {"mojibake": 1, "double HTML entities": 1}
    assert train.ratio.median > 1 and validation.filters == {} and validation.overlap == {}
    assert not Path(pairs).with_name("run").exists() and sorted(path.name for path in Path(pairs).iterdir()) == [
        "train.jsonl",
        "validation.jsonl",
    ]


def test_rules(pairs):
    """Those that are on at their value, the others at a usual one; each as if it were alone."""
    filters = (
        inspect(config_of(pairs, data={"filters": {"max_word_length": 6, "drop_identical": True}})).sets[0].filters
    )
    assert {name for name, trial in filters.items() if trial.is_on} == {"max_word_length", "drop_identical"}
    taken = {name: rows_of(trial.found) for name, trial in filters.items() if trial.found.count}
    assert "36" in taken.pop("max_length_ratio")
    assert taken == {
        "drop_identical": ["33"],
        "max_word_length": ["37"],
        "match_digits": ["32", "38"],
        "drop_held_out": ["39"],
        "drop_duplicates": ["31"],
    }
    assert filters["max_word_length"].value == 6 and filters["max_length_ratio"].value == 3
    assert filters["min_script_share"].value == {"source": {"Latin": 0.5}, "target": {"Latin": 0.5}}
    assert "8" in filters["match_digits"].found.examples[1].reason


def test_a_stream_is_looked_at_in_the_same_way(pairs):
    plain, streamed = (inspect(config_of(pairs, data={"streaming": streaming})) for streaming in (False, True))
    assert plain == streamed


@pytest.mark.parametrize("streaming", [False, True])
def test_the_first_rows(pairs, streaming):
    train, validation = inspect(config_of(pairs, data={"streaming": streaming}), 32).sets
    assert (train.rows, train.is_whole, train.bad.count) == (32, False, 0)
    assert train.repeated.rows.count == 1 and validation.is_whole
    assert inspect(config_of(pairs, data={"streaming": streaming}), 40).sets[0].is_whole


def test_several_corpora_and_sets(pairs, tmp_path):
    other = write(tmp_path / "other", train=HELD_OUT * 2)
    data = {
        "mix": {"clean": {}, "copy": {"path": other, "filters": {"drop_held_out": True}}},
        "validation": {"a": "validation", "b": {"path": other, "split": "train"}},
    }
    sets = {report.place: report for report in inspect(config_of(pairs, data=data)).sets}
    assert [*sets] == ["mix.clean", "mix.copy", "validation.a", "validation.b"]
    copy = sets["mix.copy"]
    assert copy.overlap["validation.a"].rows.count == 4 and copy.overlap["validation.a"].held_out_rows == 2
    assert copy.overlap["validation.b"].held_out_rows == 4
    assert copy.filters["drop_held_out"].is_on and copy.filters["drop_held_out"].found.count == 4
    assert not sets["mix.clean"].filters["drop_held_out"].is_on


def test_a_target_that_is_a_list(tmp_path):
    rows = [{"source": "a b", "target": ["c d", "e"]}] * 2
    train = inspect(config_of(write(tmp_path / "data", train=rows), data={"validation": None})).sets[0]
    assert train.bad.count == 0 and train.repeated.rows.count == 1 and train.repeated.sources.count == 0


def test_what_the_tokenizer_cannot_write(tmp_path):
    rows = [{"source": "a dog barks", "target": "ein Hund bellt"}] * 5 + [{"source": "a zebra", "target": "ﬁn"}]
    path = write(tmp_path / "data", train=rows)
    train = inspect(config_of(path, tokenizer={"kind": "word"}, data={"validation": None})).sets[0]
    assert train.unwritten["source"].tokens == 1 and train.unwritten["source"].pieces == {"zebra": 1}
    assert train.unwritten["source"].changed.count == 1 and train.unwritten["source"].tried == 6
    assert inspect(config_of(path, data={"validation": None})).sets[0].unwritten["source"].changed.count == 0
    lost = inspect(config_of(path, tokenizer={"kind": "unigram", "vocab_size": 40}, data={"validation": None})).sets[0]
    assert lost.unwritten["target"].lost_characters == {"ﬁ": 1} and not lost.unwritten["source"].lost_characters


def test_classes(tmp_path):
    rows = [{"source": f"text {n}", "target": "right" if n % 4 else "wrong"} for n in range(20)]
    rows += [{"source": "text 1", "target": "wrong"}, {"source": "text 2", "target": None}]
    held_out = [{"source": "text 3", "target": "right"}, {"source": "x", "target": "neither"}]
    path = write(tmp_path / "data", train=rows, validation=held_out)
    for streaming in (False, True):
        inspection = inspect(config_of(path, "text_classification", data={"streaming": streaming}))
        train, validation = inspection.sets
        assert train.classes == {"right": 15, "wrong": 6} and train.bad.count == 1
        assert validation.unseen_classes == {"neither": 1} and validation.bad.count == 1
        assert train.repeated.sources.count == 1  # of two classes
        assert train.overlap["validation"].held_out_rows == 1 and [*train.lengths] == ["source"]
        assert "match_digits" not in train.filters and "max_word_length" in train.filters


def test_running_text(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.txt").write_text("one line of text\nand one more\none line of text\n")
    config = config_of(str(tmp_path / "data"), "language_modeling", data={"validation": None, "source": "text"})
    [train] = inspect(config).sets
    assert (train.rows, train.repeated, train.filters) == (3, None, {})
    assert train.lengths["source"].tokens > 9 and train.lengths["source"].limit is None


def test_series(tmp_path):
    steps = [f"{n},{n * 0.5},1,{'' if n in (3, 4, 9) else n}" for n in range(12)]
    steps[7] = "7,many,1,7"
    steps[10] = "3,5,1,10"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.csv").write_text("\n".join(["time,load,flat,gaps", *steps, ""]))
    [train] = inspect(
        config_of(
            str(tmp_path / "data"),
            "forecasting",
            data={"validation": None},
            forecasting={"series": ["load", "flat", "gaps"], "time": "time"},
            model={"context_length": 4, "prediction_length": 2, "patch_length": 2, "patch_stride": 2},
        )
    ).sets
    assert train.windows == 7 and "3" in train.disorder and "not later" in train.disorder
    load, flat, gaps = train.series.values()
    assert load.not_numbers.count == load.missing == 1 and (load.minimum, load.maximum) == (0, 5.5)
    assert flat.is_constant and flat.mean == 1
    assert (gaps.missing, gaps.longest_gap) == (3, 2) and not gaps.is_constant


def test_languages(tmp_path):
    pytest.importorskip("py3langid")
    english = "The man is walking down the street with a dog."
    rows = [{"en": english, "xy": "Der Mann geht mit einem Hund auf der Straße spazieren."} for _ in range(4)]
    rows += [{"en": "Ceci est une phrase en français, pas en anglais.", "xy": english}]
    data = {"source": "en", "target": "xy", "validation": None}
    languages = inspect(config_of(write(tmp_path / "data", train=rows), data=data)).sets[0].languages
    assert languages["source"].expected == "en" and languages["source"].is_given
    assert languages["source"].counts == {"en": 4, "fr": 1} and rows_of(languages["source"].other) == ["5"]
    assert languages["target"].expected == "de" and not languages["target"].is_given  # as most rows are
    assert languages["target"].other.count == 1


def test_without_the_extra(pairs, monkeypatch):
    monkeypatch.setitem(sys.modules, "py3langid", None)
    assert inspect(config_of(pairs)).sets[0].languages is None


def test_quantiles():
    assert quantiles({1: 1, 2: 1, 3: 1, 4: 97}, (0.01, 0.02, 0.5, 1.0)) == [1, 2, 4, 4]
    assert quantiles({}, (0.5,)) == [0]
