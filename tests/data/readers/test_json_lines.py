import gzip
import os

import datasets
import pytest

from pipeline.data.readers import json_lines
from pipeline.data.readers.base import SplitRequest, SplitSpec
from pipeline.data.rows import PLACE, PROBLEM
from pipeline.errors import ConfigError, DataError
from tests.data.folders import EXPECTED, ROWS, open_folder, texts, write_csv, write_jsonl

BAD_LINES = {
    b'{"en": "a", "fr": \n': "the line is not JSON: Expecting value at character",
    b'["a", "b"]\n': 'the line is not a JSON object, such as {"en": "...", "fr": "..."}',
    b'{"en": "a"}\n': "there is no column 'fr'",
    b'{"en": "\xff", "fr": "b"}\n': "byte 9 of the line is not UTF-8",
    b'{"en": "\\uD800", "fr": "b"}\n': "\\ud800 is half of a surrogate pair",
    b'{"en": ["a", {"b": "\\udfff"}], "fr": "b"}\n': "\\udfff is half of a surrogate pair",
    b'{"en": ' + b"[" * 100_000 + b"]" * 100_000 + b', "fr": "b"}\n': "the line is nested too deeply",
    b'{"en": ' + b"1" * 5_000 + b', "fr": "b"}\n': "the line cannot be read: Exceeds the limit (4300 digits)",
    b'{"en": "a\0", "fr": "b"}\n': "the line holds a NUL byte, so it is binary",
    b"3\n": "the line is not a JSON object, such as",
}


@pytest.mark.parametrize("streaming", [False, True])
def test_bad_lines_are_named_and_end_nothing(tmp_path, streaming):
    good = b'{"en": "a", "fr": "b"}\n'
    (tmp_path / "train.jsonl").write_bytes(good + b"\n" + b"".join(bad + good for bad in BAD_LINES))
    rows = list(open_folder(tmp_path, streaming=streaming))
    assert [row[PLACE] for row in rows] == [
        f"{tmp_path}/train.jsonl:{number}" for number in (1, *range(3, 3 + 2 * len(BAD_LINES)))
    ]
    for row, problem in zip(rows[1::2], BAD_LINES.values(), strict=True):
        assert row[PROBLEM].startswith(problem)
    assert all(row[PROBLEM] is None and row["source"] == "a" for row in rows[::2])
    (tmp_path / "train.jsonl").write_bytes(next(iter(BAD_LINES)) * 2)
    with pytest.raises(DataError, match=r"train.jsonl:1: the line is not JSON"):
        open_folder(tmp_path, streaming=streaming)


def test_what_is_left_to_datasets(tmp_path):
    """Options, and other formats; slices and compressed files are read here, and .json of lines or of one array."""
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    (tmp_path / "test.ndjson.gz").write_bytes(gzip.compress((tmp_path / "train.jsonl").read_bytes()))
    write_csv(tmp_path / "validation.csv", ROWS)
    columns = {"source": "en", "target": "fr"}

    def accepts(split: str, **options) -> bool:
        return json_lines.accepts(SplitRequest(str(tmp_path), SplitSpec.parse(split), columns, **options))

    assert accepts("train.jsonl") and accepts("test.ndjson.gz")
    assert accepts("train.jsonl[:2]") and not accepts("validation.csv")
    (tmp_path / "lines.json").write_text('{"en": "a"}\n{"en": "b"}')
    (tmp_path / "array.json").write_text('[\n{"en": "a"}]')
    (tmp_path / "columns.json").write_text('{\n"en": ["a"]}')
    assert accepts("lines.json") and accepts("array.json") and not accepts("columns.json")
    assert accepts("columns.json", options={"field": "en"})
    assert not accepts("train.jsonl", options={"chunksize": 1 << 20})
    assert texts(open_folder(tmp_path, "train.jsonl[:2]")) == EXPECTED[:2]
    assert list(open_folder(tmp_path, "test.ndjson.gz"))[2][PLACE] == f"{tmp_path}/test.ndjson.gz:3"


@pytest.mark.parametrize("streaming", [False, True])
def test_marks_and_halves_that_are_whole(tmp_path, streaming):
    """A byte order mark is not part of the first line; an escaped pair is a character; other columns do not matter."""
    (tmp_path / "train.jsonl").write_bytes(b'\xef\xbb\xbf{"en": "\\ud83d\\ude00", "fr": "\\\\ud800", "no": "\\ud800"}')
    rows = list(open_folder(tmp_path, streaming=streaming))
    assert texts(rows) == [{"source": "\U0001f600", "target": "\\ud800"}] and rows[0][PROBLEM] is None


@pytest.mark.parametrize("slice_", ["[:70%]", "[2:4]", "[-3:]", "[5:100]"])
def test_a_slice_is_that_of_datasets(tmp_path, slice_):
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    expected = datasets.load_dataset("json", data_files=str(tmp_path / "train.jsonl"), split=f"train{slice_}")
    rows = list(open_folder(tmp_path, f"train{slice_}"))
    assert [row["source"] for row in rows] == expected["en"] and rows[-1][PLACE].startswith(f"{tmp_path}/train.jsonl:")
    with pytest.raises(ConfigError, match=r"data: a stream has no part 'train\[.*; set data.streaming=false"):
        open_folder(tmp_path, f"train{slice_}", streaming=True)


def test_other_content_under_the_same_time_is_read_anew(tmp_path):
    """As `cp -p` and `rsync -t` leave it."""
    path = tmp_path / "train.jsonl"
    for text in ("a", "b"):
        write_jsonl(path, [{"en": text, "fr": "un"}])
        os.utime(path, (1_700_000_000, 1_700_000_000))
        assert texts(open_folder(tmp_path)) == [{"source": text, "target": "un"}]
