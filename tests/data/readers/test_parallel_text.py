import pytest

from pipeline.data.rows import PLACE, PROBLEM
from pipeline.errors import DataError
from tests.data.folders import open_folder, texts


@pytest.mark.parametrize("streaming", [False, True])
def test_parallel_text_files(tmp_path, streaming):
    # U+2028, U+0085 and a form feed end a line for str.splitlines, and would shift every later pair.
    source, target = ["a\u2028b", "c\x0cd", "e"], ["x", "y\x85z", "w"]
    (tmp_path / "train.en").write_bytes("\r\n".join(source).encode())
    (tmp_path / "train.fr").write_bytes(("\n".join(target) + "\n").encode())
    rows = texts(open_folder(tmp_path, streaming=streaming))
    assert rows == [{"source": s, "target": t} for s, t in zip(source, target, strict=True)]
    (tmp_path / "train.fr").write_text("x\n")
    with pytest.raises(DataError, match=r"train.fr has no line 2"):
        list(open_folder(tmp_path, streaming=streaming))


@pytest.mark.parametrize("streaming", [False, True])
def test_bytes_that_are_no_text(tmp_path, streaming):
    """They make one row of U+FFFD, which tasks refuse."""
    (tmp_path / "validation.en").write_bytes(b"a\n\xff\n")
    (tmp_path / "validation.fr").write_bytes(b"b\nd\n")
    rows = list(open_folder(tmp_path, "validation", streaming=streaming))
    assert texts(rows) == [{"source": "a", "target": "b"}, {"source": "\ufffd", "target": "d"}]
    assert rows[1][PLACE] == f"{tmp_path}/validation.en and {tmp_path}/validation.fr:2"


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "train.en").write_text("a\n")
    (tmp_path / "train.fr").write_text("")
    with pytest.raises(DataError, match=r"train.fr: the file is empty"):
        open_folder(tmp_path)


@pytest.mark.parametrize("streaming", [False, True])
def test_marks_and_nul_bytes(tmp_path, streaming):
    (tmp_path / "train.en").write_bytes(b"\xef\xbb\xbfa\nb\0\n\nd")
    (tmp_path / "train.fr").write_bytes(b"\xef\xbb\xbfx\ny\nz\nw")
    rows = list(open_folder(tmp_path, streaming=streaming))
    assert texts(rows)[0] == {"source": "a", "target": "x"} and texts(rows)[2:] == [
        {"source": "", "target": "z"},
        {"source": "d", "target": "w"},
    ]
    assert [row[PROBLEM] is None for row in rows] == [True, False, True, True]


def test_a_slice(tmp_path):
    for column in ("en", "fr"):
        (tmp_path / f"train.{column}").write_text("".join(f"{column} {number}\n" for number in range(10)))
    rows = open_folder(tmp_path, "train[80%:]")
    assert texts(rows) == [{"source": f"en {number}", "target": f"fr {number}"} for number in (8, 9)]
