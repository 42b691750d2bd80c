"""What every text of a user goes through."""

import io
import sys

import pytest

from pipeline.commands.texts import check_text, decode, lines_of
from pipeline.errors import ConfigError, DataError


def test_the_place_of_bytes_that_are_not_utf_8_is_named():
    assert decode("é".encode(), "x") == "é"
    with pytest.raises(DataError, match="x:7: invalid UTF-8; fix this line"):
        decode(b"a\nb\n\xff", "x", first_line=5)
    with pytest.raises(ConfigError, match="text 1: invalid UTF-8 in"):
        check_text("\udcff", "text 1")


def test_lines_come_from_a_file_or_standard_input(tmp_path, monkeypatch):
    (tmp_path / "texts").write_bytes(b"a\r\n\nb")
    assert [*lines_of(tmp_path / "texts", "--file")] == [b"a\r\n", b"\n", b"b"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"c\n")))
    assert [*lines_of(None, "--file")] == [b"c\n"]
    with pytest.raises(ConfigError, match="none: No such file"):
        next(lines_of(tmp_path / "none", "--file"))
