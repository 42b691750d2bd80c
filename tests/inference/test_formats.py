import json

import pyarrow.parquet
import pytest

from pipeline.inference.corpus import Answer
from pipeline.inference.formats import LINES, to_row, write_answers
from pipeline.inference.hypotheses import Hypothesis, Wanted

BEST = Hypothesis("x\ny\tz", -1.5, ["x", "y"], [0.5, 0.25], [0, 1], ["a", "b"])
SECOND = Hypothesis("w", -2.5, ["w"], [0.125], [1], ["a", "b"])
ANSWERS = [Answer("a b", [BEST, SECOND]), Answer("", []), Answer("c", [SECOND, BEST])]
ALL = Wanted(num_best=2, scores=True, token_probabilities=True, alignments=True)


def test_a_text_has_one_line_for_each_answer():
    said = [LINES["text"](one, Wanted()) for one in ANSWERS]
    assert said == ["x y\tz", "", "w"]
    assert LINES["text"](ANSWERS[0], Wanted(num_best=2)) == "x y z\tw"
    assert LINES["text"](ANSWERS[0], Wanted(num_best=2, scores=True)) == "x y z\t-1.500000\tw\t-2.500000"
    assert LINES["text"](ANSWERS[1], Wanted(num_best=2, scores=True)) == ""


def test_columns_are_what_was_asked_for_and_alike_in_all_rows():
    assert to_row(ANSWERS[0], Wanted()) == {"source": "a b", "target": "x\ny\tz"}
    assert to_row(ANSWERS[1], Wanted(scores=True)) == {"source": "", "target": "", "score": None}
    row = to_row(ANSWERS[0], ALL)
    assert row["target"] == "x\ny\tz" and row["score"] == -1.5 and row["alignment"] == [0, 1]
    assert [hypothesis["text"] for hypothesis in row["hypotheses"]] == ["x\ny\tz", "w"]
    assert all(to_row(one, ALL).keys() == row.keys() for one in ANSWERS)


@pytest.mark.parametrize("wanted", [Wanted(), Wanted(num_best=2), ALL])
def test_json_lines_and_parquet_hold_the_same(tmp_path, wanted):
    for format in ("jsonl", "parquet"):
        write_answers(tmp_path / format, format, ANSWERS, wanted)
    lines = (tmp_path / "jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines[:-1]]
    assert (
        rows == [to_row(one, wanted) for one in ANSWERS] == pyarrow.parquet.read_table(tmp_path / "parquet").to_pylist()
    )
