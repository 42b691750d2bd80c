"""Texts that look wrong, and texts that must not."""

import unicodedata

import pytest

from pipeline.data.text_faults import FAULTS, MOJIBAKE, find_faults, is_composed


def faults(text: str) -> dict[str, int]:
    return dict(find_faults(text))


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
@pytest.mark.parametrize(
    "text",
    ["été à Paris", "München", "“quoted” – dash", "« oui »", "Привет", "Ελλάδα", "日本語", "👍 ok", "Łódź", "שלום"],
)
def test_utf8_that_was_read_in_another_encoding(text, encoding):
    read = "".join(
        bytes([byte]).decode("latin-1" if byte in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else encoding)  # as browsers do
        for byte in text.encode()
    )
    assert MOJIBAKE in faults(read) and MOJIBAKE not in faults(text)


def test_of_other_encodings():
    assert MOJIBAKE in faults("Привет мир".encode().decode("cp1251")) and MOJIBAKE in faults("a 锟斤拷 b")


@pytest.mark.parametrize(
    "text",
    [
        "voilà\u00a0» dit-il, «CAFÉ», Spaß“, „Ö“",
        "AMANHÃ» e IRMÃ”, Às vezes… à “noite”",
        "Đà Nẵng ở Việt Nam, Ñandú, ÎLE, ÖÄÜß„“",
        "РАССКАЗ О СССР и РФ",
        "AT&T, R&D; a & b",
        "क\u094dष नमस्\u200dते \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",  # joiners belong to these scripts
        "tab\tand\r\nlines",
        "你好，世界！",
    ],
)
def test_what_is_right_as_it_stands(text):
    assert faults(text) == {}


@pytest.mark.parametrize(
    "text, found",
    [
        ("a \ufffd", {"U+FFFD": 2}),
        ("a\x07", {"control characters": 1}),
        ("a\u0085é", {"control characters": 1}),
        ("a\u200bb", {"invisible characters": 1}),
        ("\ufeffa", {"invisible characters": 0}),
        ("a\ue000", {"private use": 1}),
        ("x &quot;y&quot;", {"HTML entities": 2}),
        ("x &#39;", {"HTML entities": 2}),
        ("a &amp;lt; b", {"double HTML entities": 2}),
        ("a &amp;amp;amp; b &lt;", {"double HTML entities": 2}),
    ],
)
def test_kinds(text, found):
    assert faults(text) == found and {*found} <= {*FAULTS}


def test_normal_forms():
    composed, decomposed = "un été", unicodedata.normalize("NFD", "un été")
    assert faults(composed) == {} and is_composed(composed)
    assert faults(decomposed) == {"decomposed letters": 3} and not is_composed(decomposed)
    assert not is_composed("plain")
