import bz2
from itertools import islice

import pytest

from pipeline.config import DataConfig
from pipeline.data.rows import PLACE, PROBLEM
from pipeline.data.splits import fingerprint_split, open_split
from pipeline.errors import ConfigError, DataError

STREAMING = pytest.mark.parametrize("streaming", [False, True])
FASTTEXT = "__label__pos  a good film \n__label__2\tbad, bad\n\n__label__a__b x\n"


def read(path, streaming=False, split="train", lanes=1, source="text", target="label", **options):
    options = {"format": "label_first", **options}
    data = DataConfig(path=str(path), streaming=streaming, source=source, target=target, options=options)
    return open_split(data, split, data.columns, lanes)


def pairs(rows):
    return [(row["target"], row["source"]) for row in rows]


@STREAMING
def test_lines_of_fasttext(tmp_path, streaming):
    expected = [("pos", "a good film"), ("2", "bad, bad"), ("a__b", "x")]
    (tmp_path / "train.ft.txt.bz2").write_bytes(bz2.compress(FASTTEXT.encode()))
    rows = list(read(tmp_path, streaming))
    assert pairs(rows) == expected and rows[2][PLACE] == f"{tmp_path}/train.ft.txt.bz2:4"
    (tmp_path / "test.txt").write_text(FASTTEXT)
    for path, split in (
        (tmp_path / "test.txt", "train"),
        (tmp_path, "test"),
        (tmp_path, "test.txt"),
        (tmp_path, "te*"),
    ):
        assert pairs(read(path, streaming, split)) == expected
    if not streaming:
        assert pairs(read(tmp_path, split="test[1:]")) == expected[1:]


@STREAMING
def test_lines_of_trec(tmp_path, streaming):
    """Whose own file is Latin-1."""
    lines = ["DESC:manner How did serfdom develop ?", "HUM:ind Who was  Abb\xe9 ?", "LOC:city\u00a0 a"]
    (tmp_path / "train_5500.label").write_bytes("\n".join(lines).encode("latin-1"))
    rows = pairs(read(tmp_path, streaming, encoding="latin-1"))
    assert rows[:2] == [("DESC:manner", "How did serfdom develop ?"), ("HUM:ind", "Who was  Abb\xe9 ?")]
    assert rows[2] == ("LOC:city\xa0", "a")  # as the class ends at a space or tab
    assert pairs(read(tmp_path, streaming))[1] == ("HUM:ind", "Who was  Abb\ufffd ?")


@STREAMING
@pytest.mark.parametrize(
    "line, problem",
    [
        (b"__label__a __label__b text", "the line has several classes, where one is needed"),
        (b"__label__a text __label__b", "the line has several classes, where one is needed"),
        (b"__label__a", "there is no text behind the class"),
        (b"__label__a \t", "there is no text behind the class"),
        (b"__label__ text", "there is no class behind __label__"),
        (b"a text", "the line does not begin with __label__, as other lines do"),
        (b"__label__a te\0xt", "the line holds a NUL byte, so it is binary, or text that is not UTF-8"),
    ],
)
def test_bad_rows(tmp_path, line, problem, streaming):
    for content in (b"__label__x y\n" + line + b"\n__label__z w", line + b"\n__label__x y\n__label__z w"):
        (tmp_path / "train.txt").write_bytes(content)
        rows = list(read(tmp_path, streaming))
        (bad,) = (row for row in rows if row[PROBLEM])
        assert (bad[PROBLEM], bad["source"], bad["target"]) == (problem, None, None)
        number = content.split(b"\n").index(line) + 1
        assert bad[PLACE] == f"{tmp_path}/train.txt:{number}"
        assert pairs(row for row in rows if not row[PROBLEM]) == [("x", "y"), ("z", "w")]


def test_a_prefix_that_comes_late(tmp_path):
    (tmp_path / "train.txt").write_text("a b\n" * 100 + "__label__a b\n")
    problem = "the line begins with __label__, where the first lines of the file do not"
    assert [row[PROBLEM] for row in read(tmp_path)] == [None] * 100 + [problem]


def test_lanes_and_a_state(tmp_path):
    for shard in range(2):
        (tmp_path / f"train-{shard}.txt").write_text("".join(f"a {shard} {n}\n" for n in range(3)))
    rows = read(tmp_path, streaming=True, lanes=2)
    assert rows.num_shards == 2 and read(tmp_path, streaming=True, lanes=3).num_shards == 6
    first = list(islice(iter(rows), 4))
    rows.load_state_dict(rows.state_dict())
    assert pairs([*first, *rows]) == [("a", f"{shard} {n}") for shard in range(2) for n in range(3)]


def test_wrong_settings(tmp_path):
    (tmp_path / "train.txt").write_text("a b\n")
    with pytest.raises(ConfigError, match=r"data.options.format: unknown format 'fasttext'; choose from label_first"):
        read(tmp_path, format="fasttext")
    with pytest.raises(ConfigError, match=r"data.options.sep: unknown beside format=label_first; choose from encoding"):
        read(tmp_path, sep=" ")
    with pytest.raises(DataError, match=r"there is no column 'target'"):
        read(tmp_path, target="target")
    with pytest.raises(ConfigError, match=r"data: no file test.\* in .*; name it"):
        read(tmp_path, split="test")


def test_a_change_is_noticed(tmp_path):
    fingerprints = []
    for content in ("a b\n", "a c\n"):
        (tmp_path / "train.txt").write_text(content)
        data = DataConfig(path=str(tmp_path), options={"format": "label_first"})
        fingerprints.append(fingerprint_split(data, "train", {"source": "text", "target": "label"}))
    assert fingerprints[0] != fingerprints[1]
