import gzip
import json
import re
import zipfile
from itertools import islice

import pytest

from pipeline.config import DataConfig
from pipeline.data import lines
from pipeline.data.readers import parallel_text
from pipeline.data.readers.base import SplitRequest, SplitSpec
from pipeline.data.rows import PLACE, PROBLEM
from pipeline.data.splits import fingerprint_split, open_split
from pipeline.errors import ConfigError, DataError
from tests.data.folders import EXPECTED, ROWS, open_folder, texts, write_jsonl

STREAMING = pytest.mark.parametrize("streaming", [False, True])


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


def write_pairs(folder, name, numbers, ends=(".en", ".fr")):
    """Write pairs `en N` and `fr N` as two files, packed as their names say."""
    for column, end in zip(("en", "fr"), ends, strict=True):
        path = folder / name.format(column=column) if "{" in name else folder / f"{name}{end}"
        path.parent.mkdir(exist_ok=True)
        content = "".join(f"{column} {number}\n" for number in numbers).encode()
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def pairs(numbers):
    return [{"source": f"en {number}", "target": f"fr {number}"} for number in numbers]


@STREAMING
@pytest.mark.parametrize(
    "split, names",
    [
        ("train", ["train"]),
        ("train", ["train-0", "train-1"]),
        ("train", ["train.00000-of-00002", "train.00001-of-00002"]),
        ("news.en-fr", ["news.en-fr"]),
        ("news.en-fr", ["news.en-fr_0", "news.en-fr_1"]),
        ("corpus-*", ["corpus-a", "corpus-b.x"]),
        ("corpus-?.{column}", ["corpus-a", "corpus-b"]),
        ("a.en", ["a"]),
        ("a.fr", ["a"]),
        ("{column}/a-*.txt", ["{column}/a-1.txt", "{column}/a-2.txt"]),
        ("a_{column}.txt.gz", ["a_{column}.txt.gz"]),
    ],
)
def test_names_of_files(tmp_path, split, names, streaming):
    for number, name in enumerate(names):
        write_pairs(tmp_path, name, range(3 * number, 3 * number + 3))
    write_pairs(tmp_path, "other", range(9))
    assert texts(open_folder(tmp_path, split, streaming=streaming)) == pairs(range(3 * len(names)))
    if not streaming:
        assert texts(open_folder(tmp_path, f"{split}[1:3]")) == pairs([1, 2])


@STREAMING
@pytest.mark.parametrize("ends", [(".en.gz", ".fr.gz"), (".en.gz", ".fr")])
def test_packed_files(tmp_path, ends, streaming):
    write_pairs(tmp_path, "train-0", range(4), ends)
    write_pairs(tmp_path, "train-1", range(4, 6))
    for split in ("train", "train-*", "train-?"):
        assert texts(open_folder(tmp_path, split, streaming=streaming)) == pairs(range(6))
    assert len(set(files_of(tmp_path, "train"))) == 4


def files_of(folder, split):
    return parallel_text.files(SplitRequest(str(folder), SplitSpec.parse(split), {"source": "en", "target": "fr"}))


@STREAMING
def test_lanes_share_shards_or_rows(tmp_path, streaming):
    """And a stream goes on from its state."""
    for number in range(2):
        write_pairs(tmp_path, f"train-{number}", range(5 * number, 5 * number + 5), (".en", ".fr.gz"))
    data = DataConfig(path=str(tmp_path), source="en", target="fr", streaming=streaming)
    for lanes in (1, 2, 3):
        rows = open_split(data, "train", data.columns, lanes)
        assert sorted(texts(rows), key=str) == pairs(range(10))
        if streaming:
            assert rows.num_shards == (2 if lanes < 3 else 6)
            before = list(islice(iter(rows), 4))
            state = rows.state_dict()
            rows.load_state_dict(state)
            assert sorted(texts(before + list(rows)), key=str) == pairs(range(10))


@pytest.mark.parametrize(
    "names, split, problem",
    [
        (["a-0.en", "a-0.fr", "a-1.en"], "a-*", r"a-1.en has no parallel file for 'fr' beside it; there are .*a-0.en"),
        (["a-0.en", "a-0.fr", "a-1.fr"], "a", r"a-1.fr has no parallel file for 'en'"),
        (["train.en"], "train", r"train.en has no parallel file for 'fr'"),
        (["train.en", "train.en.gz", "train.fr"], "train", r"train.en and .*train.en.gz are both there"),
        (["train.en", "train.fr"], "news.en-fr", r"no file .*news.en-fr; there are train.en, train.fr"),
        (["train.en", "train.fr"], "corpus-*.{column}", r"no file .*; there are train.en, train.fr"),
        (["a_en", "a_de"], "a_{column}", r"a_en has no parallel file for 'fr' beside it; there are a_de, a_en"),
        (["x_de.txt"], "x_{column}.txt", r"there is no x_en.txt and x_fr.txt in .*; there are x_de.txt"),
    ],
)
def test_files_without_a_counterpart(tmp_path, names, split, problem):
    for name in names:
        (tmp_path / name).write_bytes(gzip.compress(b"a\n") if name.endswith("gz") else b"a\n")
    with pytest.raises((ConfigError, DataError), match=problem):
        open_folder(tmp_path, split)


@STREAMING
def test_lengths_that_differ_inside_shards(tmp_path, streaming):
    write_pairs(tmp_path, "train-0", range(3))
    write_pairs(tmp_path, "train-1", range(200), (".en.gz", ".fr"))
    (tmp_path / "train-1.fr").write_text("x\n" * 150)
    with pytest.raises(DataError, match=r"train-1.fr has no line 151, but its parallel file has"):
        list(open_folder(tmp_path, streaming=streaming))


def test_an_unpaired_file_beside_a_table(tmp_path):
    (tmp_path / "train.en").write_text("a\n")
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    assert texts(open_folder(tmp_path)) == EXPECTED


def test_options(tmp_path):
    write_pairs(tmp_path, "train", range(2))
    with pytest.raises(ConfigError, match=r"data.options.encodign: unknown for parallel text; did you mean encoding\?"):
        open_folder(tmp_path, encodign="latin-1")


def write_zip(path, files, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def moses(name, numbers, languages=("en", "fr")):
    return {f"{name}.{language}": "".join(f"{language} {n}\n" for n in numbers) for language in languages}


REST = {"README": "x", "LICENSE": "x", "X.en-fr.xml": "<a/>", "__MACOSX/._X.en-fr.en": "x"}


@STREAMING
def test_a_zip_of_moses_files(tmp_path, streaming):
    """The zip, or a folder with one; nothing is unpacked."""
    archive = tmp_path / "X.zip"
    write_zip(archive, moses("X.en-fr", range(5)) | REST)
    for path, split in ((archive, "train"), (tmp_path, "train"), (tmp_path, "X.zip"), (archive, "X.en-fr")):
        rows = list(open_folder(path, split, streaming=streaming))
        assert texts(rows) == pairs(range(5))
    assert rows[1][PLACE] == f"{archive}/X.en-fr.en and {archive}/X.en-fr.fr:2"
    assert [path.name for path in tmp_path.iterdir()] == ["X.zip"]
    assert texts(open_folder(archive, streaming=streaming, source="fr", target="en"))[0]["source"] == "fr 0"
    write_pairs(tmp_path, "dev.en-fr", range(2))  # fixed sets lie beside the zip, or are slices
    assert texts(open_folder(archive, "dev.en-fr", streaming=streaming)) == pairs(range(2))
    if not streaming:
        assert texts(open_folder(archive, "train[80%:]")) == pairs([4])
        # Another content under the same name.
        write_zip(archive, moses("X.en-fr", range(3)))
        assert texts(open_folder(archive)) == pairs(range(3))


@STREAMING
def test_a_pattern_means_what_is_in_the_zip(tmp_path, streaming):
    """Other pairs and zips beside it are not trained on instead; tables beside it may have a pattern of their own."""
    archive = tmp_path / "X.zip"
    write_zip(archive, moses("A.en-fr", [0]) | moses("B.en-fr", [1]))
    write_zip(tmp_path / "Y.zip", moses("Y.en-fr", [5]))
    write_pairs(tmp_path, "dev.en-fr", [7])
    assert texts(open_folder(archive, "*", streaming=streaming)) == pairs([0, 1])
    assert texts(open_folder(archive, "dev*", streaming=streaming)) == pairs([7])
    (tmp_path / "test-0.tsv").write_text("en\tfr\na\tb\n", encoding="utf-8")
    assert texts(open_folder(archive, "test-*.tsv", streaming=streaming)) == [{"source": "a", "target": "b"}]


@STREAMING
def test_a_zip_of_several_pairs(tmp_path, streaming):
    archive = tmp_path / "X.zip"
    write_zip(
        archive, moses("sub/A.en-fr", range(2)) | moses("sub/B.en-fr", range(2, 4)) | moses("C", [1], ["de", "nl"])
    )
    with pytest.raises(ConfigError, match=r"X.zip has several parallel texts: sub/A.en-fr, sub/B.en-fr; name one as"):
        open_folder(archive, streaming=streaming)
    assert texts(open_folder(archive, "B.en-fr", streaming=streaming)) == pairs([2, 3])
    assert texts(open_folder(archive, "*", streaming=streaming)) == pairs(range(4))
    assert texts(open_folder(archive, ["B.en-fr", "A.en-fr"], streaming=streaming)) == pairs([2, 3, 0, 1])
    with pytest.raises(ConfigError, match=r"A.en-fr.en would be read twice, as X.zip/A.en-fr and X.zip/\*"):
        open_folder(archive, ["A.en-fr", "*"], streaming=streaming)
    for path in (archive, tmp_path):
        with pytest.raises(
            ConfigError, match=r"X.zip has no validation.en and validation.fr, .*; there is sub/A.en-fr, s"
        ):
            open_folder(path, "validation", streaming=streaming)
    with pytest.raises(ConfigError, match=r"X.zip has no files that end with .source and .target, .*; there are sub/A"):
        open_folder(archive, source="source", target="target", streaming=streaming)
    with pytest.raises(
        DataError, match=r"C.de has no parallel file for 'fr' beside it; there are C.de, C.nl, sub/A.en"
    ):
        open_folder(archive, "C", source="de", target="fr", streaming=streaming)


def changed(content, local, central, value):
    """Set a byte in the headers of all members."""
    changed = bytearray(content)
    for mark, place in ((b"PK\3\4", local), (b"PK\1\2", central)):
        for match in re.finditer(re.escape(mark), content):
            changed[match.start() + place] = value
    return bytes(changed)


@STREAMING
@pytest.mark.parametrize(
    "change, problem",
    [
        (lambda zipped: changed(zipped, 6, 8, 1), r"X.zip/X.en-fr.en: the file is encrypted; unpack .*X.zip with its"),
        (lambda zipped: changed(zipped, 8, 10, 99), r"X.zip/X.en-fr.en: .*compression method.*; unpack .*X.zip"),
        (lambda zipped: zipped[:100], r"X.zip: the file is damaged or not packed as its name says"),
        (lambda zipped: zipped.replace(b"en 4", b"en 5"), r"X.en-fr.en: the file is damaged .*Bad CRC-32"),
    ],
    ids=["encrypted", "packing", "cut", "changed"],
)
def test_zips_that_cannot_be_read(tmp_path, change, problem, streaming):
    write_zip(tmp_path / "X.zip", moses("X.en-fr", range(5)), zipfile.ZIP_STORED)
    (tmp_path / "X.zip").write_bytes(change((tmp_path / "X.zip").read_bytes()))
    with pytest.raises(DataError, match=problem):
        list(open_folder(tmp_path / "X.zip", streaming=streaming))


def test_a_zip_that_would_fill_a_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "ALWAYS_FINE", 100_000)
    write_zip(tmp_path / "X.zip", {"X.en": "\n" * 1_000_000, "X.fr": "\n" * 1_000_000})
    with pytest.raises(DataError, match=r"X.zip/X.en: 9\d\d bytes that unpack to 1,000,000 are not text"):
        open_folder(tmp_path / "X.zip")


@STREAMING
def test_bad_rows_of_a_zip(tmp_path, streaming):
    write_zip(tmp_path / "X.zip", {"X.en": b"a\n\xff\n\nb\0\n", "X.fr": b"x\ny\nz\nw\n"})
    rows = list(open_folder(tmp_path / "X.zip", streaming=streaming))
    assert [row["source"] for row in rows] == ["a", "\ufffd", "", "b\0"]
    assert [row[PROBLEM] is None for row in rows] == [True, True, True, False]
    assert rows[3][PLACE].endswith("X.zip/X.fr:4")


def test_a_zip_of_a_table_is_left_to_datasets(tmp_path):
    write_zip(tmp_path / "a.zip", {"a.jsonl": "".join(f"{json.dumps(row)}\n" for row in ROWS)})
    assert texts(open_folder(tmp_path / "a.zip")) == EXPECTED


@STREAMING
def test_one_file_for_two_columns(tmp_path, streaming):
    write_pairs(tmp_path, "train", range(2))
    rows = texts(open_folder(tmp_path, streaming=streaming, target="en"))
    assert rows == [{"source": f"en {number}", "target": f"en {number}"} for number in range(2)]


def test_a_zip_of_other_things_is_left_alone(tmp_path):
    write_zip(tmp_path / "X.zip", {"README": "x"})
    assert files_of(tmp_path, "train") == []


@pytest.mark.parametrize("shape", ["shards", "zip"])
def test_a_change_is_noticed(tmp_path, shape):
    def fingerprint(numbers, **options):
        if shape == "zip":
            write_zip(tmp_path / "X.zip", moses("X", numbers))
        else:
            write_pairs(tmp_path, "train-0", range(2))
            write_pairs(tmp_path, "train-1", numbers, (".en.gz", ".fr"))
        data = DataConfig(path=str(tmp_path), source="en", target="fr", options=options)
        return fingerprint_split(data, "train", data.columns)

    first = fingerprint([1, 2])
    assert fingerprint([1, 3]) != first and fingerprint([1, 2], encoding="latin-1") != first
