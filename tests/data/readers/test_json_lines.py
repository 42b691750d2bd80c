import gzip
import os

import pytest

from pipeline.data.readers import json_lines
from pipeline.data.readers.base import SplitRequest, SplitSpec
from pipeline.errors import DataError
from tests.data.folders import EXPECTED, ROWS, open_folder, texts, write_csv, write_jsonl

BAD_LINES = {
    b'{"en": "a", "fr": \n': "the line is not JSON: Expecting value at character",
    b'["a", "b"]\n': "there is no column 'en'",
    b'{"en": "a"}\n': "there is no column 'fr'",
    b'{"en": "\xff", "fr": "b"}\n': "byte 9 of the line is not UTF-8",
}


@pytest.mark.parametrize("streaming", [False, True])
def test_bad_lines_are_named_and_end_nothing(tmp_path, streaming):
    good = b'{"en": "a", "fr": "b"}\n'
    (tmp_path / "train.jsonl").write_bytes(good + b"\n" + b"".join(bad + good for bad in BAD_LINES))
    rows = list(open_folder(tmp_path, streaming=streaming))
    assert [row["place"] for row in rows] == [f"{tmp_path}/train.jsonl:{number}" for number in (1, *range(3, 11))]
    for row, problem in zip(rows[1::2], BAD_LINES.values(), strict=True):
        assert row["problem"].startswith(problem)
    assert all(row["problem"] is None and row["source"] == "a" for row in rows[::2])
    (tmp_path / "train.jsonl").write_bytes(next(iter(BAD_LINES)) * 2)
    with pytest.raises(DataError, match=r"train.jsonl:1: the line is not JSON"):
        open_folder(tmp_path, streaming=streaming)


def test_what_is_left_to_datasets(tmp_path):
    """A slice, options, and other formats; compressed lines are read here."""
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    (tmp_path / "test.ndjson.gz").write_bytes(gzip.compress((tmp_path / "train.jsonl").read_bytes()))
    write_csv(tmp_path / "validation.csv", ROWS)
    columns = {"source": "en", "target": "fr"}

    def accepts(split: str, **options) -> bool:
        return json_lines.accepts(SplitRequest(str(tmp_path), SplitSpec.parse(split), columns, **options))

    assert accepts("train.jsonl") and accepts("test.ndjson.gz")
    assert not accepts("train.jsonl[:2]") and not accepts("validation.csv")
    assert not accepts("train.jsonl", options={"chunksize": 1 << 20})
    assert texts(open_folder(tmp_path, "train.jsonl[:2]")) == EXPECTED[:2]
    assert list(open_folder(tmp_path, "test.ndjson.gz"))[2]["place"] == f"{tmp_path}/test.ndjson.gz:3"


def test_other_content_under_the_same_time_is_read_anew(tmp_path):
    """As `cp -p` and `rsync -t` leave it."""
    path = tmp_path / "train.jsonl"
    for text in ("a", "b"):
        write_jsonl(path, [{"en": text, "fr": "un"}])
        os.utime(path, (1_700_000_000, 1_700_000_000))
        assert texts(open_folder(tmp_path)) == [{"source": text, "target": "un"}]
