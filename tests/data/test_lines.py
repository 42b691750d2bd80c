import gzip
import io
import zipfile

import pytest

from pipeline.data import lines
from pipeline.data.lines import bounded_lines, find_encoding, find_line_problem, list_members, read_lines
from pipeline.errors import ConfigError, DataError


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


TEXTS = ["a Ċ\u0a0a b\r\n", "\n", "c\u2028d\x0c\n", "né"]  # U+010A and U+0A0A hold the byte 0x0A


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be", "gb18030", "utf-7"])
@pytest.mark.parametrize("has_mark", [False, True])
def test_lines_of_other_encodings(tmp_path, encoding, has_mark):
    has_own = encoding in ("utf-16", "utf-32")
    content = "".join(["\ufeff"] * (has_mark and not has_own) + TEXTS).encode(encoding)
    codec = find_encoding(encoding)
    for name, data in (("a", content), ("a.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(data)
        assert list(read_lines(tmp_path / name, codec)) == [text.encode() for text in TEXTS]
    assert [find_line_problem(text.encode(), codec) for text in TEXTS] == [None] * 4


def test_bytes_that_are_not_of_an_encoding():
    broken = io.BytesIO("a\n".encode("utf-16-le") + b"\x00\xd8" + "b\n".encode("utf-16-le") + b"c")
    lines = list(bounded_lines(broken, "broken", "utf-16-le"))
    assert lines == [b"a\n", "\ufffdb\n".encode(), "\ufffd".encode()]
    assert find_line_problem(lines[1], "utf-16-le") == "the line holds bytes that are not utf-16-le"
    assert list(bounded_lines(io.BytesIO(b"\x81\n\xe9\n"), "x", "cp1252")) == ["\ufffd\n".encode(), "é\n".encode()]


@pytest.mark.parametrize(
    "content, encoding, problem",
    [
        ("a".encode("utf-16"), "iso8859-1", "x: the file is UTF-16 by its first bytes, where .*encoding=iso8859-1"),
        (b"\xef\xbb\xbfa", "cp1252", "x: the file is UTF-8 by its first bytes"),
        ("a".encode("utf-32"), "utf-16", "x: the file is UTF-32 by its first bytes"),
        ("a".encode("utf-16-le"), "utf-16", "does not begin with a byte order mark; .*encoding=utf-16-le is right"),
        ("a".encode("utf-32-be"), "utf-32", "does not begin with a byte order mark; .*encoding=utf-32-be is right"),
        ("a".encode("utf-32"), None, "the file is UTF-32; convert it to UTF-8, .*, or name the encoding of data"),
        ("a".encode("utf-16-le") * 2_000_000, "utf-16-le", "x:1: the line has more than 1 MB"),
    ],
)
def test_contents_that_contradict_an_encoding(monkeypatch, content, encoding, problem):
    monkeypatch.setattr(lines, "LONGEST_LINE", 1_000_000)
    with pytest.raises(DataError, match=problem):
        list(bounded_lines(io.BytesIO(content), "x", encoding))


def test_names_of_encodings():
    names = {
        "latin-1": "iso8859-1",
        "UTF8": None,
        "utf-8-sig": None,
        1252: "cp1252",
        "UTF-16LE": "utf-16-le",
        None: None,
    }
    assert {name: find_encoding(name) for name in names} == names
    for name in ("latn-1", "windows1251x", "base64", "", True, "a\0", "idna"):
        with pytest.raises(ConfigError, match=r"data.options: unknown encoding .*; (did you mean|choose one)"):
            find_encoding(name)


def test_files_in_a_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("sub/b.gz", gzip.compress(b"a\nb"))
    assert list_members(tmp_path / "a.zip") == ["sub/b.gz"]
    assert list(read_lines(tmp_path / "a.zip" / "sub" / "b.gz")) == [b"a\n", b"b"]
    with pytest.raises(DataError, match=r"a.zip/none: there is no such file in .*a.zip"):
        list(read_lines(tmp_path / "a.zip" / "none"))
