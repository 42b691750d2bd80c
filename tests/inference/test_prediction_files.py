"""Predictions of systems from files, and rows that must be the same."""

import json
import re

import pytest

from pipeline.errors import ConfigError, DataError
from pipeline.inference.compare import EvaluationSet
from pipeline.inference.prediction_files import Answers, Texts, agree, read_answers, read_texts

ROWS = [
    {"source": "a", "reference": "A", "prediction": "x"},
    {"source": "b", "reference": ["B", "b"], "prediction": ""},
]


@pytest.fixture
def write(tmp_path):
    def call(content, name="p.txt"):
        if isinstance(content, list):
            content = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in content)
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path / name

    return call


@pytest.mark.parametrize(
    "content, lines",
    [
        ("a\nb\n", ["a", "b"]),
        ("a\r\nb\r\n", ["a", "b"]),
        ("\ufeffa\nb", ["a", "b"]),
        ("a\n\nb\n", ["a", "", "b"]),
        ("a\u2028b\x85c\n", ["a\u2028b\x85c"]),
        ("\n", [""]),
    ],
    ids=["plain", "crlf", "bom, no end", "empty line", "other line ends", "an empty answer"],
)
def test_texts_are_lines(write, content, lines):
    path = write(content)
    assert read_texts(path).lines == lines and read_answers(path) == Answers(str(path), lines)


def test_json_lines_are_told_by_their_name_or_first_line(write):
    expected = (["x", ""], ["a", "b"], ["A", ["B", "b"]], None)
    for name in ("p.jsonl", "p.txt", "p"):
        answers = read_answers(write(ROWS, name))
        assert (answers.predictions, answers.sources, answers.references, answers.corpora) == expected
    answers = read_answers(write([{"prediction": "x", "corpus": "news", "score": 1}], "p.jsonl"))
    assert (answers.predictions, answers.sources, answers.corpora) == (["x"], None, ["news"])
    answers = read_answers(write([{"source": "a", "target": "x", "score": -1.5}], "generated"))
    assert (answers.predictions, answers.sources, answers.references) == (["x"], ["a"], None)
    assert read_answers(write('{"a": 1}\n[2]\n')).predictions == ['{"a": 1}', "[2]"]  # of a system that writes JSON


@pytest.mark.parametrize(
    "content, said",
    [
        ("", "p.jsonl: the file is empty; one text a line is needed"),
        (b"\xff\n", "p.jsonl:1: invalid UTF-8"),
        ('{"prediction": "a"}\n\n', "p.jsonl:2: the line cannot be read as JSON"),
        ('{"prediction": "a"}\n[1]\n', "p.jsonl:2: the line has no prediction; write one object a line"),
        ('{"source": "a"}\n', "p.jsonl:1: the line has no prediction"),
        ("[" * 100_000, "p.jsonl:1: the line cannot be read as JSON"),
        (r'{"prediction": "\ud800"}', "p.jsonl:1: the line cannot be read as JSON"),
        ([{"prediction": None}], "p.jsonl:1: prediction is null, as nothing was generated; score again with"),
        ([{"prediction": 3}], "p.jsonl:1: prediction is 3, where a text is needed"),
        ([{"prediction": "a", "reference": ["a", 1]}], r"p.jsonl:1: reference is ['a', 1], where a text is needed"),
        ([{"prediction": "a", "reference": []}], "p.jsonl:1: reference is [], where a text is needed"),
        ([*ROWS, {"prediction": "a", "source": "c"}], "p.jsonl:3: reference is not in all lines"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_lines_are_named(write, content, said):
    path = write(content, "p.jsonl")
    with pytest.raises(DataError, match=re.escape(str(path.with_name(said)))):
        read_answers(path)


def test_a_binary_table_is_named(tmp_path):
    with pytest.raises(DataError, match=r"a\.parquet: Parquet is not read here; write the answers as \.jsonl"):
        read_answers(tmp_path / "a.parquet")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"no\.txt: No such file"):
        read_answers(tmp_path / "no.txt")


def answers(place, count=2, **columns):
    return Answers(place, ["x"] * count, **columns)


def test_rows_come_from_whoever_gives_them():
    plain = answers("plain")
    full = answers("full", sources=["a", "b"], references=["A", ["B", "b"]], corpora=["n", "t"])
    assert agree([plain, full]) == EvaluationSet(["A", ["B", "b"]], ["a", "b"], ["n", "t"])
    assert agree([plain], references=[Texts("r", ["A", "B"])]) == EvaluationSet(["A", "B"])
    both = [Texts("r1", ["A", "B"]), Texts("r2", ["1", "b"])]  # must hold what the file has
    assert agree([plain, full], Texts("s", ["a ", "b"]), both).references == [["A", "1"], ["B", "b"]]
    again = answers("again", sources=["a", " b"], references=[["A"], ["B ", "b"]])
    assert agree([full, again]).references == ["A", ["B", "b"]]


@pytest.mark.parametrize(
    "systems, texts, said",
    [
        ([answers("p", sources=["a", "b"])], [], "--references: p has no references; name a file with one a line"),
        (
            [answers("p", sources=["a", "b"]), answers("q", sources=["a", "c"])],
            [],
            "q:2: the source is 'c', but in p 'b'; compare answers to the same rows, in the same order",
        ),
        (
            [answers("p", references=["a", ["b", "c"]]), answers("q", references=["a", "b"])],
            [],
            r"q:2: the reference is 'b', but in p ['b', 'c']",
        ),
        ([answers("p", references=["A", "b"])], [Texts("r", ["A", "B"])], "p:2: the reference is 'b', but in r 'B'"),
        ([answers("p"), answers("q", 3)], [Texts("r", ["A", "B"])], "p has 2 rows and q 3: line 3 is the first"),
        ([answers("p")], [Texts("r", ["A"])], "r has 1 rows and p 2: line 2 is the first that is missing"),
        ([answers("p")], [Texts("r", ["A", "B"]), Texts("s", ["A"])], "s has 1 rows and r 2: line 2"),
        (
            [answers("p", sources=["a", "b"]), answers("q", 1, sources=["b"])],  # whose first line was lost
            [Texts("r", ["A", "B"])],
            "q:1: the source is 'b', but in p 'a'",
        ),
    ],
)
def test_rows_that_differ_are_named(systems, texts, said):
    with pytest.raises((ConfigError, DataError), match=re.escape(said)):
        agree(systems, references=texts)


def test_sources_of_a_file_are_compared_as_well():
    with pytest.raises(DataError, match="p:1: the source is 'a', but in s 'x'"):
        agree([answers("p", sources=["a", "b"], references=["A", "B"])], Texts("s", ["x", "b"]))
