import datasets
import pytest

from pipeline.config import DataConfig
from pipeline.data.readers import plain_text
from pipeline.data.rows import PLACE, PROBLEM
from pipeline.data.splits import open_split
from pipeline.errors import DataError

TEXT = "one\r\ntwo\n\n\n\nthree\n\nfour\u2028 4\n \n\nfive\n"


def read(path, streaming=False, column="text", **options):
    return list(
        open_split(DataConfig(path=str(path), streaming=streaming, options=options), "train", {"source": column})
    )


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("unit", ["line", "paragraph"])
def test_rows_are_those_of_datasets(tmp_path, streaming, unit):
    (tmp_path / "train.txt").write_bytes(TEXT.encode())
    expected = datasets.load_dataset("text", data_files=str(tmp_path / "train.txt"), sample_by=unit, split="train")
    rows = read(tmp_path, streaming, sample_by=unit)
    assert [row["source"] for row in rows] == expected["text"]
    assert next(row[PLACE] for row in rows if row["source"] == "three") == f"{tmp_path}/train.txt:6"


@pytest.mark.parametrize("streaming", [False, True])
def test_marks_and_bytes_that_are_not_text(tmp_path, streaming):
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbfa\n\xff\nb\0\n")
    rows = read(tmp_path, streaming)
    assert [row["source"] for row in rows] == ["a", "\ufffd", "b\0"]
    assert [row[PROBLEM] is None for row in rows] == [True, True, False]
    with pytest.raises(DataError, match="there is no column 'en'; choose from text"):
        read(tmp_path, streaming, column="en")


def test_a_paragraph_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(plain_text, "LONGEST_LINE", 1_000_000)
    (tmp_path / "train.txt").write_text("short\n\n" + "a\n" * 500_001)
    with pytest.raises(DataError, match=r"train.txt:3: the paragraph has more than 1 MB"):
        read(tmp_path, sample_by="paragraph")
