import copy
import os
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value

from pipeline.errors import ConfigError, DataError
from tests.data.folders import EXPECTED, ROWS, open_folder, texts, write_parquet


@pytest.mark.parametrize("streaming", [False, True])
def test_bytes_that_are_no_text(tmp_path, streaming):
    """They make one row of U+FFFD, which tasks refuse; and no text is taken for a missing value."""
    (tmp_path / "train.csv").write_bytes(b"en,fr\na,b\n\xff,d\nNA,null\n")
    expected = [{"source": "a", "target": "b"}, {"source": "\ufffd", "target": "d"}, {"source": "NA", "target": "null"}]
    assert texts(open_folder(tmp_path, streaming=streaming)) == expected


@pytest.mark.parametrize("streaming", [False, True])
def test_a_column_called_place(tmp_path, streaming):
    """It is a column like any other, also of a data set that does not say where its rows are."""
    write_parquet(tmp_path / "train.parquet", [{"place": row["en"], "problem": row["fr"]} for row in ROWS])
    rows = open_folder(tmp_path, source="place", target="problem", streaming=streaming)
    assert list(rows) == EXPECTED


@pytest.mark.parametrize("streaming", [False, True])
def test_options_are_those_of_datasets(tmp_path, streaming):
    """Nothing is taken for a number by these either; a misspelled one is named."""
    (tmp_path / "train.csv").write_text("# a comment\n01|a\n1e0|NA\n|c\n")
    rows = open_folder(tmp_path, streaming=streaming, sep="|", names=["fr", "en"], skiprows=1)
    assert list(rows) == [
        {"source": "a", "target": "01"},
        {"source": "NA", "target": "1e0"},
        {"source": "c", "target": ""},
    ]
    with pytest.raises(ConfigError, match=r"data.options.skiprow: unknown for data of the kind csv; .* skiprows\?$"):
        open_folder(tmp_path, streaming=streaming, skiprow=1)
    with pytest.raises(ConfigError, match=r"data.options.revision: other keys of the section data say this"):
        open_folder(tmp_path, streaming=streaming, revision="main")


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_that_nobody_asked_for_are_not_decoded(tmp_path, streaming):
    """What says it is a picture, and is not, hurts nobody."""
    features = Features({"en": Value("string"), "fr": Value("string"), "picture": Image()})
    pictures = [{"bytes": b"not a picture", "path": None}] * len(ROWS)
    table = {name: [row[name] for row in ROWS] for name in ("en", "fr")}
    Dataset.from_dict({**table, "picture": pictures}, features=features).to_parquet(tmp_path / "train.parquet")
    assert list(open_folder(tmp_path, streaming=streaming)) == EXPECTED
    with pytest.raises(DataError, match=r"there is no column 'de'; choose from en, fr, picture"):
        open_folder(tmp_path, streaming=streaming, source="de")


@pytest.mark.parametrize("streaming", [False, True])
def test_classes_have_the_names_of_their_data_set(tmp_path, streaming):
    features = Features({"text": Value("string"), "meta": {"label": ClassLabel(names=["pos", "neg", "none"])}})
    table = {"text": ["a"] * 3, "meta": [{"label": number} for number in (1, 0, -1)]}
    Dataset.from_dict(table, features=features).to_parquet(tmp_path / "train.parquet")
    rows: Any = list(open_folder(tmp_path, streaming=streaming, source="text", target="meta.label"))
    assert [row["target"] for row in rows] == ["neg", "pos", None]
    assert rows[0]["target"].names == ["pos", "neg", "none"] and rows[0]["target"].number == 1
    assert copy.deepcopy(rows[0]["target"]).number == 1  # as on its way to a loader worker


def test_other_content_under_the_same_time_is_read_anew(tmp_path):
    """As `cp -p` and `rsync -t` leave it; the cache of `datasets` knows files by path and time."""
    path = tmp_path / "train.csv"
    for text in ("a", "b"):
        path.write_text(f"en,fr\n{text},un\n")
        os.utime(path, (1_700_000_000, 1_700_000_000))
        assert texts(open_folder(tmp_path)) == [{"source": text, "target": "un"}]


@pytest.mark.parametrize("name", ["train.csv", "train.jsonl"])
def test_a_line_too_long_for_the_memory_is_refused_here_too(tmp_path, monkeypatch, name):
    monkeypatch.setattr("pipeline.data.lines.LONGEST_LINE", 100)
    (tmp_path / name).write_text("a" * 101)
    with pytest.raises(DataError, match=rf"{name}:1: the line has more than"):
        open_folder(tmp_path, chunksize=1000)
