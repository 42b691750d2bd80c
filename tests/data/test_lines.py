import gzip
import io

import pytest

from pipeline.data import lines
from pipeline.data.lines import bounded_lines, read_lines
from pipeline.errors import DataError


def test_lines_end_at_newline_bytes_only(tmp_path):
    content = b"\xef\xbb\xbfa\xe2\x80\xa8b\r\n\nc\x0cd\n\xef\xbb\xbfe"
    for name, data in (("a", content), ("a.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(data)
        assert list(read_lines(tmp_path / name)) == [
            b"a\xe2\x80\xa8b\r\n",
            b"\n",
            b"c\x0cd\n",
            b"\xef\xbb\xbfe",  # only the first is a byte order mark
        ]
    (tmp_path / "empty").write_bytes(b"\xef\xbb\xbf")
    assert list(read_lines(tmp_path / "empty")) == []


def test_a_long_line_ends_it_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "LONGEST_LINE", 1_000_000)
    packed = gzip.compress(b"short\n" + b"a" * 50_000_000, 1)
    (tmp_path / "a.jsonl.gz").write_bytes(packed)
    with pytest.raises(DataError, match=r"a.jsonl.gz:2: the line has more than 1 MB"):
        list(read_lines(tmp_path / "a.jsonl.gz"))
    with open("/dev/zero", "rb") as endless, pytest.raises(DataError, match="zeros:1: the line has more than 1 MB"):
        next(bounded_lines(endless, "zeros"))
    assert list(bounded_lines(io.BytesIO(b"a" * 999_999 + b"\n"), "short enough"))


@pytest.mark.parametrize(
    "name, content, problem",
    [
        ("a", "text".encode("utf-16"), "the file is UTF-16; convert it to UTF-8"),
        ("a.gz", b"text", "the file is damaged or not packed as its name says"),
        ("a.gz", gzip.compress(bytes(range(256)) * 1000)[:-20], "the file is damaged or not packed as its name says"),
        ("a.bz2", b"text", "the file is damaged or not packed as its name says"),
        ("a.xz", b"text", "the file is damaged or not packed as its name says"),
    ],
)
def test_files_that_are_not_what_they_seem(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: {problem}"):
        list(read_lines(tmp_path / name))


def test_what_the_system_refuses(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for name, reason in (("loop", "Too many levels"), ("none", "No such file"), ("", "Is a directory")):
        with pytest.raises(DataError, match=reason):
            list(read_lines(tmp_path / name))
