import errno
import textwrap
from pathlib import Path

import pytest
from datasets import Dataset, IterableDataset
from pydantic import ValidationError

from pipeline.config import DataConfig
from pipeline.data import readers
from pipeline.data.readers.base import Reader
from pipeline.data.splits import fingerprint_split, open_split
from pipeline.data_config import Constant, SetConfig
from pipeline.errors import ConfigError, DataError, RunError
from tests.data.folders import (
    EXPECTED,
    ROWS,
    open_folder,
    texts,
    write_csv,
    write_gz,
    write_jsonl,
    write_parquet,
)


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


@pytest.mark.parametrize("part", ["[:0]", "[5:5]", "[100:200]"])
def test_a_part_without_rows_is_refused(tmp_path, part):
    write_jsonl(tmp_path / "train.jsonl", ROWS[:3])
    with pytest.raises(DataError, match=r"train\[.*\] holds no row, as there are 3 in all"):
        open_folder(tmp_path, f"train{part}")


def test_shards_of_several_kinds_are_refused(tmp_path):
    write_jsonl(tmp_path / "train-0.jsonl", ROWS[:3])
    write_csv(tmp_path / "train-1.csv", ROWS[3:])
    with pytest.raises(
        ConfigError, match=r"train-1.csv would be left out beside .*train-0.jsonl, .*; move it away, or"
    ):
        open_folder(tmp_path)
    assert texts(open_folder(tmp_path, "train-1.csv")) == EXPECTED[3:]


@pytest.mark.parametrize("name", ["TRAIN.CSV", "a:b.jsonl", "a.JSONL", "corpus.doc"])
def test_names_that_no_reader_takes(tmp_path, name):
    write_jsonl(tmp_path / name, ROWS[:3])
    with pytest.raises(ConfigError, match=r"no file of data has this name. It must end in .csv, .*, in small letters"):
        open_folder(tmp_path / name)


@pytest.mark.parametrize("name", ["a[1].jsonl", "a*.jsonl", "folder [1]/train.jsonl"])
def test_names_with_characters_of_patterns(tmp_path, name):
    """They would mean other files as well, or none."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    write_jsonl(tmp_path / name, ROWS[:3])
    write_jsonl(tmp_path / "ab.jsonl", ROWS)
    with pytest.raises(ConfigError, match=r"has a [\[*] in its name, which stands for others; rename it"):
        open_folder(tmp_path / name)


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


def test_one_file_has_no_other_split(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    write_jsonl(tmp_path / "b.jsonl", ROWS[:2])
    assert texts(open_folder(tmp_path / "a.jsonl", "b.jsonl")) == EXPECTED[:2]
    with pytest.raises(ConfigError, match=r"a.jsonl is one file, so it has no split 'validation'"):
        open_folder(tmp_path / "a.jsonl", "validation")


def test_a_file_in_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("source,target\na,b\n")
    monkeypatch.chdir(tmp_path)
    assert texts(open_folder("a.csv", source="source", target="target")) == [{"source": "a", "target": "b"}]


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


def test_a_path_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for path, reason in (
        ("/dev/zero", "is a device or a pipe; name a file or a folder"),
        (tmp_path / "loop", "Too many levels of symbolic links"),
        ("x" * 300, "File name too long"),
        ("/", "is the root of all files"),
    ):
        with pytest.raises((ConfigError, ValidationError), match=reason):
            open_folder(path)
    (tmp_path / "train.jsonl").mkdir()
    (tmp_path / "notes.md").write_text("no data")
    with pytest.raises(ConfigError, match=r"/dev/zero must lie below data.path"):
        open_folder(tmp_path, "/dev/zero")
    with pytest.raises(ConfigError, match=r"train.jsonl is a folder where a file is needed"):
        open_folder(tmp_path, "train.jsonl")
    with pytest.raises(ConfigError, match=r"there is no file of data; there are notes.md"):
        open_folder(tmp_path)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["train.parquet", "train.zip", "train.tar", "train.jsonl.zip", "train.json"])
def test_files_that_are_not_what_they_seem(tmp_path, streaming, name):
    (tmp_path / name).write_bytes(b"\x80 neither of these")
    with pytest.raises(DataError, match=r"^data.path: .* \(train\): "):
        open_folder(tmp_path, streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_file_that_holds_only_names_is_empty(tmp_path, streaming):
    (tmp_path / "train.csv").write_text("en,fr\n\n")
    with pytest.raises(DataError, match=r"\(train\) is empty: there is no row to read"):
        open_folder(tmp_path, streaming=streaming)


def test_values_of_options_are_checked(tmp_path):
    write_csv(tmp_path / "train.csv", ROWS)
    for options in ({"sep": 5}, {"quotechar": "ab"}, {"encoding": "nonsense"}):
        with pytest.raises(ConfigError, match=r"^data.options: "):
            open_folder(tmp_path, **options)
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(ConfigError, match=r"^data.options.features: a config cannot hold such an object"):
        open_folder(tmp_path / "train.jsonl", features={"en": "string"})
    with pytest.raises(ConfigError, match=r"^data.options: "):
        open_folder(tmp_path / "train.jsonl", data_dir=3)
    with pytest.raises(DataError, match=r"gives no row to read with data.options of chunksize"):
        open_folder(tmp_path / "train.jsonl", chunksize=0)


def test_a_bug_keeps_its_traceback(tmp_path, monkeypatch):
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    monkeypatch.setattr("pipeline.data.readers.text_lines.read_lines", lambda file, encoding: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        open_folder(tmp_path)


def test_no_room_is_not_the_fault_of_the_data(tmp_path, monkeypatch):
    def fail(file, encoding):
        raise OSError(errno.ENOSPC, "No space left on device")

    write_jsonl(tmp_path / "train.jsonl", ROWS)
    monkeypatch.setattr("pipeline.data.readers.text_lines.read_lines", fail)
    with pytest.raises(RunError, match=r"No space left on device; make room for the rows in "):
        open_folder(tmp_path)


def test_names_that_are_taken():
    with pytest.raises(ConfigError, match=r"a column cannot be called \(place\)"):
        open_split(DataConfig(path="reversal"), "train", {"(place)": "source"})


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("writer, suffix", [(write_jsonl, "jsonl"), (write_csv, "csv"), (write_parquet, "parquet")])
def test_several_files_are_read_one_after_another(tmp_path, streaming, writer, suffix):
    """The types of one row do not bind those of others; a stream goes on from its state, and has shards for lanes."""
    names = [f"b.{suffix}", f"a.{suffix}"]
    for name, rows in zip(names, (ROWS[:5], ROWS[5:]), strict=True):
        writer(tmp_path / name, rows)
    data = DataConfig(path=str(tmp_path), train=names, source="en", target="fr", streaming=streaming)
    columns = {**data.columns, "tag": Constant("<bt>")}
    rows = open_split(data, names, columns, lanes=3)
    if not streaming:
        assert texts(rows) == EXPECTED and {row["tag"] for row in rows} == {"<bt>"}
        assert texts(open_folder(tmp_path, [f"{names[0]}[:2]", f"{names[0]}[4:]"])) == [*EXPECTED[:2], EXPECTED[4]]
        return
    assert sorted(map(str, texts(rows))) == sorted(map(str, EXPECTED)) and rows.num_shards >= 2
    rows = open_split(data, names, columns)
    assert texts(rows) == EXPECTED and rows.num_shards == 2
    steps = rows.iter(batch_size=2)
    first = [next(steps)["source"] for _ in range(3)]
    state = rows.state_dict()
    again = open_split(data, names, columns)
    again.load_state_dict(state)
    rest = [text for batch in again.iter(batch_size=2) for text in batch["source"]]
    assert [*(text for batch in first for text in batch), *rest] == [row["source"] for row in EXPECTED]


def test_lists_of_parallel_text_and_of_splits(tmp_path):
    for name, rows in (("a", ROWS[:3]), ("b", ROWS[3:])):
        for column in ("en", "fr"):
            (tmp_path / f"{name}.{column}").write_text("".join(row[column] + "\n" for row in rows))
    rows = list(open_folder(tmp_path, ["a", "b"], streaming=True))
    assert texts(rows) == EXPECTED and rows[3]["(place)"].endswith("b.fr:1")
    data = DataConfig(path="reversal", options={"rows": 5, "held_out": 2})
    assert len(open_split(data, ["train", "test"], data.columns)) == 7


def test_lists_that_do_not_fit(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    write_parquet(tmp_path / "b.parquet", ROWS)
    write_jsonl(tmp_path / "c.jsonl", [{"en": "a"}])
    for split, message in (
        (["a.jsonl", "b.parquet"], r"a.jsonl and b.parquet are of different kinds \(json_lines and parquet\)"),
        (["a.jsonl", "none.jsonl"], r"no file .*none.jsonl; there are a.jsonl, b.parquet"),
        (["a.jsonl", "a*.jsonl"], r"a.jsonl would be read twice, as a.jsonl and a\*.jsonl"),
        (["a.jsonl", "c.jsonl"], r"c.jsonl:1: there is no column 'fr'"),
    ):
        with pytest.raises((ConfigError, DataError), match=message):
            open_folder(tmp_path, split)
    with pytest.raises(ValidationError, match=r"a.jsonl is named twice; leave one out"):
        DataConfig(path=str(tmp_path), train=["a.jsonl", "a.jsonl"])
    one = DataConfig(path=str(tmp_path), train=["a.jsonl", "c.jsonl"], source="en", target="en")
    before = fingerprint_split(one, one.train, one.columns)
    assert before != fingerprint_split(one, one.train[::-1], one.columns)
    write_jsonl(tmp_path / "c.jsonl", [{"en": "b"}])
    assert before != fingerprint_split(one, one.train, one.columns)
    sets = DataConfig(path="x", validation={"news": ["a", "b"], "talks": SetConfig(split=["c"])}, test=["a", "b"])
    assert {place: split for place, (_, split) in sets.places.items()} == {
        "train": "train",
        "validation.news": ["a", "b"],
        "validation.talks": ["c"],
        "test": ["a", "b"],
    }
    assert DataConfig(**sets.model_dump()) == sets
