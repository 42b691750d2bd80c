import gzip
import json
import textwrap
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, IterableDataset

from pipeline.config import DataConfig
from pipeline.data import readers
from pipeline.data.readers.base import Reader
from pipeline.data.splits import SplitSpec, open_split
from pipeline.errors import ConfigError, DataError

ROWS = [{"en": f"a {index}", "fr": f"un {index}"} for index in range(7)]
EXPECTED = [{"source": row["en"], "target": row["fr"]} for row in ROWS]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_csv(path, rows, separator=","):
    lines = [separator.join(rows[0])] + [separator.join(row.values()) for row in rows]
    path.write_text("\n".join(lines) + "\n")


def write_gz(path, rows):
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def write_parquet(path, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def texts(rows):
    """Without what the reader of text files adds."""
    return [{name: row[name] for name in ("source", "target")} for row in rows]


def open_folder(folder, split="train", streaming=False, source="en", target="fr", **options):
    data = DataConfig(path=str(folder), source=source, target=target, streaming=streaming, options=options)
    return open_split(data, split, data.columns)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "name, writer",
    [
        ("train.jsonl", write_jsonl),
        ("train.csv", write_csv),
        ("train.tsv", lambda path, rows: write_csv(path, rows, "\t")),
        ("train.parquet", write_parquet),
        ("train.jsonl.gz", write_gz),
    ],
)
def test_formats(tmp_path, name, writer, streaming):
    writer(tmp_path / name, ROWS)
    assert texts(open_folder(tmp_path, streaming=streaming)) == EXPECTED  # the folder
    assert texts(open_folder(tmp_path, name, streaming=streaming)) == EXPECTED  # a file in it
    assert texts(open_folder(tmp_path / name, streaming=streaming)) == EXPECTED  # the file itself


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
def test_nested_and_dotted_columns(tmp_path, streaming):
    write_jsonl(tmp_path / "train.jsonl", [{"id": 1, "translation": row} for row in ROWS])
    rows = open_folder(tmp_path, streaming=streaming, source="translation.en", target="translation.fr")
    assert texts(rows) == EXPECTED
    (tmp_path / "flat").mkdir()
    write_jsonl(tmp_path / "flat" / "train.jsonl", [{"text.en": row["en"], "text.fr": row["fr"]} for row in ROWS])
    rows = open_folder(tmp_path / "flat", streaming=streaming, source="text.en", target="text.fr")
    assert texts(rows) == EXPECTED


@pytest.mark.parametrize("streaming", [False, True])
def test_sharded_files(tmp_path, streaming):
    write_jsonl(tmp_path / "train-00000-of-00002.jsonl", ROWS[:3])
    write_jsonl(tmp_path / "train-00001-of-00002.jsonl", ROWS[3:])
    write_jsonl(tmp_path / "validation-00000-of-00001.jsonl", ROWS[:2])
    assert texts(open_folder(tmp_path, streaming=streaming)) == EXPECTED
    assert texts(open_folder(tmp_path, "train-*.jsonl", streaming=streaming)) == EXPECTED
    assert texts(open_folder(tmp_path, "validation", streaming=streaming)) == EXPECTED[:2]


@pytest.mark.parametrize("streaming", [False, True])
def test_bad_input_is_named(tmp_path, streaming):
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(DataError, match=r"train.jsonl:1: there is no column 'fra'; did you mean fr\?"):
        open_folder(tmp_path, target="fra", streaming=streaming)
    with pytest.raises(DataError, match=r"there is no column 'translation.en'; choose from en, fr"):
        open_folder(tmp_path, source="translation.en", streaming=streaming)
    with pytest.raises((DataError, ConfigError), match=r"valid"):
        open_folder(tmp_path, "valid", streaming=streaming)
    with pytest.raises(ConfigError, match=r"no file .*none.jsonl"):
        open_folder(tmp_path, "none.jsonl", streaming=streaming)
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(DataError, match=r"train.jsonl: the file is empty"):
        open_folder(tmp_path, streaming=streaming)


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


@pytest.mark.parametrize("streaming", [False, True])
def test_bytes_that_are_no_text(tmp_path, streaming):
    """They make one row of U+FFFD, which tasks refuse, in files that `datasets` or this project reads."""
    (tmp_path / "train.csv").write_bytes(b"en,fr\na,b\n\xff,d\nNA,null\n")
    expected = [{"source": "a", "target": "b"}, {"source": "\ufffd", "target": "d"}, {"source": "NA", "target": "null"}]
    assert texts(open_folder(tmp_path, streaming=streaming)) == expected
    (tmp_path / "validation.en").write_bytes(b"a\n\xff\n")
    (tmp_path / "validation.fr").write_bytes(b"b\nd\n")
    rows = list(open_folder(tmp_path, "validation", streaming=streaming))
    assert texts(rows) == expected[:2]
    assert rows[1]["place"] == f"{tmp_path}/validation.en and {tmp_path}/validation.fr:2"


def test_one_file_has_no_other_split(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    write_jsonl(tmp_path / "b.jsonl", ROWS[:2])
    assert texts(open_folder(tmp_path / "a.jsonl", "b.jsonl")) == EXPECTED[:2]
    with pytest.raises(ConfigError, match=r"a.jsonl is one file, so it has no split 'validation'"):
        open_folder(tmp_path / "a.jsonl", "validation")


def test_a_file_in_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("source,target\na,b\n")
    monkeypatch.chdir(tmp_path)
    assert list(open_folder("a.csv", source="source", target="target")) == [{"source": "a", "target": "b"}]


def test_parts_of_one_file(tmp_path):
    """A split may be a part, by the notation of datasets; a text file by line or by paragraph."""
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree\n\nfour\n\nfive\n")
    data = DataConfig(path=str(tmp_path / "a.txt"), source="text", options={"sample_by": "paragraph"})
    for split, expected in (("train[:75%]", ["one\ntwo", "three", "four"]), ("a.txt[-1:]", ["five\n"])):
        assert [row["source"] for row in open_split(data, split, {"source": "text"})] == expected
    with pytest.raises(ConfigError, match=r"a.txt is one file, so it has no split 'test\[:1\]'"):
        open_split(data, "test[:1]", {"source": "text"})


def test_a_path_that_is_nothing_is_named():
    with pytest.raises(ConfigError, match=r"'no-such-thing' is not a local file or folder, nor of the form owner/name"):
        open_folder("no-such-thing")


@pytest.mark.parametrize(
    "text, spec, is_file",
    [
        ("train", SplitSpec("train"), False),
        ("train[:90%]", SplitSpec("train", "[:90%]"), False),
        ("valid.jsonl", SplitSpec("valid.jsonl"), True),
        ("train-*.jsonl[10:20]", SplitSpec("train-*.jsonl", "[10:20]"), True),
        ("train*", SplitSpec("train*"), True),
    ],
)
def test_names_of_splits(text, spec, is_file):
    assert SplitSpec.parse(text) == spec and spec.is_file == is_file and str(spec) == text


@pytest.mark.parametrize("streaming", [False, True])
def test_a_shape_of_files_is_a_reader_and_a_line_in_the_table(tmp_path, monkeypatch, streaming):
    """The reader in the docstring of the table, before the others; their files are read as ever."""
    example = readers.__doc__.split("for instance:")[1].split("READERS =")[0]
    pairs = {"Path": Path, "Dataset": Dataset}
    exec(textwrap.dedent(example), pairs)
    monkeypatch.setattr("pipeline.data.splits.READERS", [Reader(pairs["accepts"], pairs["read"]), *readers.READERS])
    (tmp_path / "train.pairs").write_text("".join(f"{row['en']}\t{row['fr']}\n" for row in ROWS))
    (tmp_path / "others").mkdir()
    write_jsonl(tmp_path / "others" / "train.jsonl", ROWS)
    rows = open_folder(tmp_path, streaming=streaming)
    assert isinstance(rows, IterableDataset if streaming else Dataset) and list(rows) == EXPECTED
    assert texts(open_folder(tmp_path / "others", streaming=streaming)) == EXPECTED
    with pytest.raises(DataError, match=r"there is no column 'de'; choose from en, fr"):
        open_folder(tmp_path, source="de", streaming=streaming)


@pytest.mark.parametrize("writer, name", [(write_jsonl, "train.jsonl"), (write_parquet, "train.parquet")])
def test_files_are_looked_for_once(tmp_path, monkeypatch, writer, name):
    """Though two readers ask for them, as on the Hub that takes several calls."""
    calls = []
    make_builder = datasets.load_dataset_builder

    def count(*args, **kwargs):
        calls.append(args)
        return make_builder(*args, **kwargs)

    monkeypatch.setattr(datasets, "load_dataset_builder", count)
    writer(tmp_path / name, ROWS)
    assert texts(open_folder(tmp_path)) == EXPECTED and len(calls) == 1


@pytest.mark.parametrize("streaming", [False, True])
def test_a_column_called_place(tmp_path, streaming):
    """It is a column like any other, also of a data set that does not say where its rows are."""
    write_parquet(tmp_path / "train.parquet", [{"place": row["en"], "problem": row["fr"]} for row in ROWS])
    rows = open_folder(tmp_path, source="place", target="problem", streaming=streaming)
    assert list(rows) == EXPECTED
