"""What all readers of lines share: encodings."""

import json

import pytest

from pipeline.data.rows import PLACE, PROBLEM
from pipeline.errors import ConfigError
from tests.data.folders import open_folder

ENCODINGS = ["latin-1", "cp1252", "utf-16", "utf-16-be", "utf-32", "utf-8"]
ROWS = [("né", "un"), ("a, b", "è"), ("c", "d")]
SHAPES = {
    "train.csv": lambda rows: "en,fr\r\n" + "".join(f'"{en}",{fr}\r\n' for en, fr in rows),
    "train.tsv": lambda rows: "en\tfr\n" + "".join(f"{en}\t{fr}\n" for en, fr in rows),
    "train.jsonl": lambda rows: "".join(json.dumps({"en": en, "fr": fr}, ensure_ascii=False) + "\n" for en, fr in rows),
    "train.json": lambda rows: "".join(json.dumps({"en": en, "fr": fr}, ensure_ascii=False) + "\n" for en, fr in rows),
    "train.txt": lambda rows: "".join(f"{en} {fr}\n" for en, fr in rows),
    "train.en": lambda rows: "".join(f"{en}\n" for en, _ in rows),
    "train.fr": lambda rows: "".join(f"{fr}\n" for _, fr in rows),
}
FOLDERS = [["train.csv"], ["train.tsv"], ["train.jsonl"], ["train.json"], ["train.txt"], ["train.en", "train.fr"]]


def write(folder, names, encoding):
    for name in names:
        (folder / name).write_bytes(SHAPES[name](ROWS).encode(encoding))


def read(folder, names, streaming, **options):
    columns = {"source": "text", "target": "text"} if names == ["train.txt"] else {}
    return list(open_folder(folder, streaming=streaming, **columns, **options))


@pytest.mark.parametrize("names", FOLDERS, ids=" ".join)
@pytest.mark.parametrize("streaming", [False, True])
def test_encodings_by_name(tmp_path, names, streaming):
    for encoding in ENCODINGS[::2] if streaming else ENCODINGS[1:4:2]:
        write(tmp_path, names, encoding)
        rows = read(tmp_path, names, streaming, encoding=encoding)
        expected = [(f"{en} {fr}",) * 2 if names == ["train.txt"] else (en, fr) for en, fr in ROWS]
        assert [(row["source"], row["target"]) for row in rows] == expected
        assert not any(row[PROBLEM] for row in rows)


@pytest.mark.parametrize("names", FOLDERS, ids=" ".join)
@pytest.mark.parametrize("streaming", [False, True])
def test_bytes_that_are_not_of_it(tmp_path, names, streaming):
    """They make that row a bad one, with file and line."""
    write(tmp_path, names, "cp1252")
    path = tmp_path / names[0]
    path.write_bytes(path.read_bytes().replace("é".encode("cp1252"), b"\x81"))
    rows = read(tmp_path, names, streaming, encoding="cp1252")
    assert [row[PROBLEM] for row in rows] == ["the line holds bytes that are not cp1252", None, None]
    first = 2 if names[0][-3:] in ("csv", "tsv") else 1
    assert rows[0][PLACE] == f"{' and '.join(str(tmp_path / name) for name in names)}:{first}"


@pytest.mark.parametrize("names", FOLDERS, ids=" ".join)
def test_encodings_that_are_unknown(tmp_path, names):
    write(tmp_path, names, "utf-8")
    with pytest.raises(ConfigError, match=r"data.options: unknown encoding 'latn1'; did you mean latin1\?"):
        read(tmp_path, names, True, encoding="latn1")
