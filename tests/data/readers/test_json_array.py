import bz2
import gzip
import json
import tracemalloc

import pytest

from pipeline.data import lines
from pipeline.data.readers.json_array import array_rows
from pipeline.data.rows import PLACE, PROBLEM
from pipeline.errors import DataError
from tests.data.folders import EXPECTED, ROWS, open_folder, texts

STREAMING = pytest.mark.parametrize("streaming", [False, True])
GOOD = '{"en": "a", "fr": "b"}'
BAD = {
    '{"en": "a", "fr": "b",}': "the element is not JSON: ",
    "{'en': 'a', 'fr': ['b']}": "the element is not JSON: ",
    '{"en": "a [{\\"", "fr": nul}': "the element is not JSON: Expecting value at character 24",
    "3": "the element is not a JSON object, such as",
    "nul": "the element is not JSON: ",
    "": "the element is not JSON: ",
    "[1, [2]]": "the element is not a JSON object, such as",
    '{"en": "a"}': "there is no column 'fr'; choose from en. The row: {'en': 'a'}",
    '{"en": "\\ud800", "fr": "b"}': "\\ud800 is half of a surrogate pair",
    '{"en": ' + "1" * 5_000 + ', "fr": "b"}': "the element cannot be read: Exceeds the limit",
    '{"en": ' + "[" * 100_000 + "]" * 100_000 + "}": "the element is nested too deeply",
}


@STREAMING
@pytest.mark.parametrize("block", [7, 1 << 20])
def test_bad_elements_are_named_and_end_nothing(tmp_path, streaming, block, monkeypatch):
    """Wherever blocks end."""
    monkeypatch.setattr(lines, "BLOCK", block)
    bad = {element: problem for element, problem in BAD.items() if block > 7 or len(element) < 1_000}
    text = "[" + ",\n".join(f"{GOOD}, {element}" for element in bad) + "]\n"
    (tmp_path / "train.json").write_text(text)
    rows = list(open_folder(tmp_path, streaming=streaming))
    assert [row[PLACE] for row in rows] == [
        f"{tmp_path}/train.json:{number // 2 + 1}, element {number + 1}" for number in range(2 * len(bad))
    ]
    assert all(row["source"] == "a" and row[PROBLEM] is None for row in rows[::2])
    for row, problem in zip(rows[1::2], bad.values(), strict=True):
        assert row[PROBLEM].startswith(problem)


@pytest.mark.parametrize(
    "text, problem",
    [
        (
            f'[{GOOD},\n {{"en": "a}},\n {GOOD}]',
            ":2, character 27 .*: this is not JSON, and a string in it does not end",
        ),
        (f"[{GOOD},\n {{[}}]", ":2, character 27 .*: this is not JSON, and its brackets do not tell where it ends"),
        (f"[{GOOD} {GOOD}]", ":1, .*: there is neither a comma nor the end of the array behind element 1"),
        (f'[{GOOD}, {{"en": "a"', ":1, .*: the file ends within this"),
        (f"[{GOOD}", ":1, .*: there is neither a comma nor the end of the array behind element 1"),
        (f"[{GOOD}]\n[{GOOD}]", ":2, .*: there is more behind the array"),
        (f'[{GOOD}, {{"en": "{"a" * 300}"}}]', ":1, .*: this has more than 0 MB"),
    ],
)
def test_what_has_no_end_ends_the_reading_with_its_place(tmp_path, text, problem, monkeypatch):
    monkeypatch.setattr(lines, "LONGEST_LINE", 200)
    monkeypatch.setattr(lines, "BLOCK", 50)
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(DataError, match=f"train.json{problem}"):
        list(open_folder(tmp_path, streaming=True))


@STREAMING
@pytest.mark.parametrize("name, pack", [("train.json.gz", gzip.compress), ("train.json.bz2", bz2.compress)])
def test_an_array_below_keys(tmp_path, streaming, name, pack, monkeypatch):
    """Of several splits in one file; the others are passed over, whatever is in them."""
    monkeypatch.setattr(lines, "BLOCK", 16)
    content = {"version": 1.25, "notes": ["}]", {"data": '"['}], "data": {"x": None, "train": ROWS, "test": ROWS[:2]}}
    (tmp_path / name).write_bytes(pack(b"\xef\xbb\xbf" + json.dumps(content, indent=1).encode()))
    assert texts(open_folder(tmp_path, streaming=streaming, field="data.train")) == EXPECTED
    assert texts(open_folder(tmp_path, streaming=streaming, field="data.test")) == EXPECTED[:2]
    for field, problem in (
        ("dat", "there is no key 'dat'; did you mean data?"),
        ("notes.x", "no object with a key 'x'"),
        ("version", "there is no JSON array, but '1.25,"),
    ):
        with pytest.raises(DataError) as raised:
            open_folder(tmp_path, streaming=streaming, field=field)
        assert problem in str(raised.value)


@STREAMING
def test_arrays_are_shards_and_have_lanes_and_slices(tmp_path, streaming):
    for number in range(2):
        (tmp_path / f"train-{number}.json").write_text(json.dumps(ROWS[number::2]))
    (tmp_path / "empty.json").write_text("[ ]")
    assert texts(open_folder(tmp_path, streaming=streaming)) == EXPECTED[::2] + EXPECTED[1::2]
    if not streaming:
        assert texts(open_folder(tmp_path, "train[3:5]")) == [EXPECTED[6], EXPECTED[1]]
    with pytest.raises(DataError, match="empty: there is no row to read"):
        open_folder(tmp_path, "empty.json", streaming=streaming)
    (tmp_path / "train-1.json").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    with pytest.raises(DataError, match=r"one is an array, the other is not; make them alike"):
        open_folder(tmp_path, streaming=streaming)


def test_a_resumed_stream_goes_on_behind_the_last_element(tmp_path):
    (tmp_path / "train.json").write_text(json.dumps(ROWS))
    rows = open_folder(tmp_path, streaming=True)
    steps = rows.iter(batch_size=3)
    next(steps)
    state = rows.state_dict()
    rest = [batch["source"] for batch in steps]
    again = open_folder(tmp_path, streaming=True)
    again.load_state_dict(state)
    assert [batch["source"] for batch in again.iter(batch_size=3)] == rest and len(rest) == 2


@STREAMING
@pytest.mark.parametrize("encoding, broken", [("cp1252", b"\x81"), ("utf-16-le", b"\x00\xd8")])
def test_an_array_in_another_encoding(tmp_path, streaming, encoding, broken, monkeypatch):
    monkeypatch.setattr(lines, "BLOCK", 5)
    text = '[{"en": "é€", "fr": "ß"}, {"en": "é*", "fr": "ß"}, {"en": "ü", "fr": "b"}]\n'
    before, behind = (part.encode(encoding) for part in text.split("*"))
    (tmp_path / "train.json").write_bytes(before + broken + behind)
    first, bad, last = open_folder(tmp_path, streaming=streaming, encoding=encoding)
    assert [(row["source"], row["target"]) for row in (first, last)] == [("é€", "ß"), ("ü", "b")]
    assert bad[PROBLEM] == f"the line holds bytes that are not {encoding}"
    assert bad[PLACE] == f"{tmp_path / 'train.json'}:1, element 2"


def test_memory_does_not_grow_with_the_file(tmp_path):
    element = json.dumps({"en": "a" * 400, "fr": "b" * 400})
    (tmp_path / "train.json").write_text("[" + ",".join([element] * 12_000) + "]")  # 10 MB in one line
    tracemalloc.start()
    assert sum(1 for _ in array_rows([[str(tmp_path / "train.json")]], "text", ())) == 12_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6e6
