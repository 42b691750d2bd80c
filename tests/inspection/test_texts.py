"""What is found in texts that have one of each fault."""

from pathlib import Path
from typing import Any

from tests.inspection.faulty import config_of, look, rows_of, write


def test_pairs(pairs):
    train, validation = look(config_of(pairs))
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


def test_classes(tmp_path):
    rows: list[dict[str, Any]] = [{"source": f"text {n}", "target": "right" if n % 4 else "wrong"} for n in range(20)]
    rows += [{"source": "text 1", "target": "wrong"}, {"source": "text 2", "target": None}]
    held_out = [{"source": "text 3", "target": "right"}, {"source": "x", "target": "neither"}]
    path = write(tmp_path / "data", train=rows, validation=held_out)
    for streaming in (False, True):
        train, validation = look(config_of(path, "text_classification", data={"streaming": streaming}))
        assert train.classes == {"right": 15, "wrong": 6} and train.bad.count == 1
        assert validation.unseen_classes == {"neither": 1} and validation.bad.count == 1
        assert train.repeated.sources.count == 1  # of two classes
        assert train.overlap["validation"].held_out_rows == 1 and [*train.lengths] == ["source"]
        assert "match_digits" not in train.filters and "max_word_length" in train.filters


def test_running_text(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.txt").write_text("one line of text\nand one more\none line of text\n")
    config = config_of(str(tmp_path / "data"), "language_modeling", data={"validation": None, "source": "text"})
    [train] = look(config)
    assert (train.rows, train.repeated, train.filters) == (3, None, {})
    assert train.lengths["source"].tokens > 9 and train.lengths["source"].limit is None
