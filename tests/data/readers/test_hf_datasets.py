import os

import pytest

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
    (tmp_path / "train.csv").write_text("un|a\ndeux|b\n")
    options = {"sep": "|", "names": ["fr", "en"]}
    rows = open_folder(tmp_path, streaming=streaming, **options)
    assert list(rows) == [{"source": "a", "target": "un"}, {"source": "b", "target": "deux"}]


def test_other_content_under_the_same_time_is_read_anew(tmp_path):
    """As `cp -p` and `rsync -t` leave it; the cache of `datasets` knows files by path and time."""
    path = tmp_path / "train.csv"
    for text in ("a", "b"):
        path.write_text(f"en,fr\n{text},un\n")
        os.utime(path, (1_700_000_000, 1_700_000_000))
        assert texts(open_folder(tmp_path)) == [{"source": text, "target": "un"}]
