import gzip
from itertools import islice

import pytest

from pipeline.config import DataConfig
from pipeline.data.readers import translation_memory
from pipeline.data.rows import PLACE, PROBLEM
from pipeline.data.splits import fingerprint_split, open_split
from pipeline.errors import ConfigError, DataError
from tests.data.folders import open_folder, texts

STREAMING = pytest.mark.parametrize("streaming", [False, True])
HEADER = '<?xml version="1.0" encoding="{encoding}"?>\n<tmx version="1.4"><header srclang="en"/><body>\n'


def tmx(*units, encoding="UTF-8"):
    return HEADER.format(encoding=encoding) + "\n".join(units) + "\n</body></tmx>\n"


def unit(source, target, attribute="xml:lang", languages=("en", "fr")):
    variants = zip(languages, (source, target), strict=True)
    return "<tu>" + "".join(f'<tuv {attribute}="{code}"><seg>{text}</seg></tuv>' for code, text in variants) + "</tu>"


def pairs(*rows):
    return [{"source": source, "target": target} for source, target in rows]


@STREAMING
def test_names_of_files(tmp_path, streaming):
    content = [tmx(*(unit(f"en {n}", f"fr {n}") for n in numbers)).encode() for numbers in (range(4), range(4, 6))]
    expected = pairs(*((f"en {n}", f"fr {n}") for n in range(6)))
    (tmp_path / "en-fr.tmx").write_bytes(content[0])
    for path, split in (
        (tmp_path, "train"),
        (tmp_path, "en-fr.tmx"),
        (tmp_path, "en-fr"),
        (tmp_path / "en-fr.tmx", "train"),
    ):
        assert texts(open_folder(path, split, streaming=streaming)) == expected[:4]
    (tmp_path / "train-0.tmx").write_bytes(content[0])
    (tmp_path / "train-1.tmx.gz").write_bytes(gzip.compress(content[1]))
    for split in ("train", "train-*", "train-*.tmx*"):
        assert texts(open_folder(tmp_path, split, streaming=streaming)) == expected
    if not streaming:
        assert texts(open_folder(tmp_path, "train[50%:]")) == expected[3:]
        (tmp_path / "train-1.tmx.gz").write_bytes(gzip.compress(content[0]))  # another content under the same name
        assert texts(open_folder(tmp_path)) == expected[:4] * 2


@STREAMING
def test_variants_of_a_language(tmp_path, streaming):
    rows = [
        unit("a", "b"),
        unit("a", "b", "lang", ("EN", "fr_CA")),
        unit("a", "b", languages=("en-US", "FR")),
        '<tu><tuv xml:lang="en-GB"><seg>x</seg></tuv><tuv xml:lang="fr"><seg>b</seg></tuv>'
        '<tuv xml:lang="eng"><seg>y</seg></tuv><tuv xml:lang="en"><seg>a</seg></tuv></tu>',
    ]
    (tmp_path / "train.tmx").write_text(tmx(*rows))
    assert texts(open_folder(tmp_path, streaming=streaming)) == pairs(("a", "b")) * 4
    rows = list(open_folder(tmp_path, streaming=streaming, source="en-gb"))
    assert [row["source"] for row in rows] == [None, None, None, "x"]


@STREAMING
def test_markup_inside_a_segment(tmp_path, streaming):
    """Code is left out, as TMX 1.4b says; <hi> is text, and <sub> another one."""
    source = '<bpt i="1">&lt;b&gt;</bpt>Click <hi>here</hi><ept i="1">{b0}</ept>,<ph>&lt;img <sub>alt</sub> ok&gt;</ph>'
    target = "un &amp; deux&#x20;<it>x<ph>y</ph>z</it>t<ut>u</ut>\n   trois<![CDATA[ <4>]]>"
    (tmp_path / "train.tmx").write_text(tmx(unit(source, target)))
    assert texts(open_folder(tmp_path, streaming=streaming)) == pairs(("Click here,", "un & deux t trois <4>"))


@STREAMING
def test_bad_rows(tmp_path, streaming):
    rows = [
        unit("a", "b"),
        unit("a", "b", languages=("en", "de")),
        unit("a", ""),
        unit("a\x0b", "b"),
        unit("a&#x1f;", "b"),
        unit("a#", "b"),
        "<tu><tuv><seg>a</seg></tuv></tu>",
        "<tu></tu>",
        unit("c", "d"),
    ]
    (tmp_path / "train.tmx").write_bytes(tmx(*rows).encode().replace(b"#<", b"\xff<"))
    rows = list(open_folder(tmp_path, streaming=streaming))
    found = [(row["source"], row["target"]) for row in rows]
    assert found[0] == ("a", "b") and found[2:6] == [("a", ""), *[("a\ufffd", "b")] * 3] and found[-1] == ("c", "d")
    problem = "the unit has no text in 'fr'; its languages: en, de"
    assert (rows[1][PLACE], rows[1][PROBLEM], found[1]) == (f"{tmp_path}/train.tmx:4", problem, (None, None))
    assert [index for index, row in enumerate(rows) if row[PROBLEM]] == [1, 6, 7]
    with pytest.raises(DataError, match=r"train.tmx:3: the unit has no text in 'nl'; its languages: en, fr"):
        open_folder(tmp_path, streaming=streaming, target="nl")


@STREAMING
@pytest.mark.parametrize(
    "declared, encoding, options",
    [
        ("UTF-16", "utf-16", {}),
        ("UTF-16", "utf-16-le", {}),
        ("UTF-16", "utf-16-be", {}),
        ("UTF-16", "utf-8", {}),  # converted, but for its declaration
        ("UTF-8", "utf-8-sig", {}),
        ("windows-1252", "cp1252", {}),
        ("shift_jis", "shift_jis", {}),
        ("UTF-8", "latin-1", {"encoding": "latin-1"}),
    ],
)
def test_encodings(tmp_path, declared, encoding, options, streaming):
    text = "日本 Ċ" if "utf" in encoding else "日本" if "jis" in encoding else "né"  # a byte 0x0A in U+010A
    (tmp_path / "train.tmx").write_bytes(tmx(unit(text, "b"), unit("a", text), encoding=declared).encode(encoding))
    assert texts(open_folder(tmp_path, streaming=streaming, **options)) == pairs((text, "b"), ("a", text))


ENTITIES = '<!DOCTYPE tmx [<!ENTITY a "lol"><!ENTITY b "&a;&a;"><!ENTITY c SYSTEM "file:///etc/passwd">]>'


@STREAMING
@pytest.mark.parametrize(
    "content, problem",
    [
        (
            tmx(unit("a", "b"))[:-15],
            r":3: the file ends before its last element does \(no element found\); get it again",
        ),
        (tmx(unit("a", "b"))[:-25], r":3: the file ends before its last element does \(unclosed token\); get it again"),
        (tmx(unit("a", "b"), unit("a & b", "c")), r":4: the file is not well-formed XML \(not well-formed"),
        (tmx(unit("a", "b"), unit("a&nbsp;b", "c")), r":4: the file is not well-formed XML \(undefined entity\)"),
        (ENTITIES + tmx(unit("&b;", "&c;")).split("\n", 1)[1], r":1: the file declares entities or other rules"),
        ("<html><body/></html>", r":1: the file is not TMX, but has the root <html>"),
        (tmx(unit("a", "b"), encoding="UTF-9"), r"declares an encoding that is unknown; .*did you mean utf"),
        (tmx("<a>" * 200), r":3: there are more than 100 elements inside each other"),
        (tmx(*(f"<a{number}/>" for number in range(2000))), r"or 1,000 names"),
        (tmx(unit("a" * 400_000, "b")), r":3: a unit has more than 0 MB"),
        (tmx(f"<!-- {'a' * 400_000} -->"), r"a piece of markup has more than 0 MB"),
        (tmx(), r"is empty: there is no row to read"),
    ],
    ids=["cut", "cut in a tag", "&", "entity", "DTD", "html", "encoding", "deep", "names", "unit", "comment", "empty"],
)
def test_files_that_cannot_be_read(tmp_path, monkeypatch, content, problem, streaming):
    monkeypatch.setattr(translation_memory, "LONGEST_LINE", 150_000)
    (tmp_path / "train.tmx").write_text(content)
    with pytest.raises(DataError, match=problem):
        list(open_folder(tmp_path, streaming=streaming))


def test_a_dtd_is_not_loaded(tmp_path):
    """So what only it explains makes a bad row."""
    (tmp_path / "tmx14.dtd").write_text('<!ENTITY nbsp "&#160;">')
    head, rest = tmx(unit("a&nbsp;b", "c"), unit("d", "e")).split("\n", 1)
    (tmp_path / "train.tmx").write_text(f'{head}\n<!DOCTYPE tmx SYSTEM "{tmp_path}/tmx14.dtd">{rest}')
    rows = list(open_folder(tmp_path))
    assert rows[0][PROBLEM] == "the unit refers to &nbsp;, which only the DTD would explain; it is not loaded"
    assert texts(rows)[1:] == pairs(("d", "e"))


def test_a_reference_at_the_end_of_a_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(translation_memory, "BUFFER", 7)
    (tmp_path / "train.tmx").write_text(tmx(*(unit("a&#x1f;" * 3 + "é&amp;" * number, "b") for number in range(9))))
    assert [row["source"] for row in open_folder(tmp_path)] == ["a\ufffd" * 3 + "é&" * number for number in range(9)]


def test_lanes_and_a_state(tmp_path):
    (tmp_path / "train.tmx").write_text(tmx(*(unit(f"en {n}", f"fr {n}") for n in range(10))))
    data = DataConfig(path=str(tmp_path), source="en", target="fr", streaming=True)
    rows = open_split(data, "train", data.columns, lanes=2)
    assert rows.num_shards == 2
    first = list(islice(iter(rows), 3))
    rows.load_state_dict(rows.state_dict())
    order = [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]
    assert [row["source"] for row in [*first, *rows]] == [f"en {n}" for n in order]


def test_options(tmp_path):
    (tmp_path / "train.tmx").write_text(tmx(unit("a", "b")))
    with pytest.raises(ConfigError, match=r"data.options.sep: unknown for TMX; choose from encoding"):
        open_folder(tmp_path, sep="x")


def test_a_change_is_noticed(tmp_path):
    fingerprints = []
    for content in (tmx(unit("a", "b")), tmx(unit("a", "c"))):
        (tmp_path / "train.tmx").write_text(content)
        data = DataConfig(path=str(tmp_path), options={})
        fingerprints.append(fingerprint_split(data, "train", {"source": "en", "target": "fr"}))
    assert fingerprints[0] != fingerprints[1]
