import json

import pytest

from pipeline.errors import ConfigError
from scripts.benchmark_report import append, read_turns, report
from scripts.benchmark_setting import Measure, Ratio

MACHINE = {"processor": "a CPU", "cores": 2}


def turn(contender, **numbers):
    facts = {"part": "training", "of": "a config", "contender": contender, "time": "2026-11-26 12:00:00"}
    return {**facts, "numbers": numbers, "machine": MACHINE}


def lines_of(turns, *ratios):
    return [line.split() for line in report(turns, {"training": ratios})]


def test_medians_and_ranges_over_all_turns():
    lines = lines_of([turn("ours", rate=3.0), turn("ours", rate=1.0), turn("stock", rate=1.0), turn("ours", rate=2.0)])
    assert lines[:2] == [["processor:", "a", "CPU"], ["cores:", "2"]]
    assert ["rate", "2", "1", "to", "3,", "3", "turns"] in lines
    assert ["rate", "1", "1", "to", "1,", "1", "turn"] in lines


def test_a_ratio_is_of_medians_over_the_greatest_below():
    rate = [Measure(name, "rate") for name in ("ours", "stock", "better", "absent")]
    products = Measure("products", "of a token")
    turns = [turn("ours", rate=6.0), turn("stock", rate=1.0), turn("better", rate=2.0)]
    turns += [turn("ours", rate=8.0), turn("stock", rate=1.0), turn("better", rate=4.0)]
    ratios = [Ratio("faster", rate[0], (*rate[1:],), goal="2"), Ratio("share", rate[0], (rate[1],), products)]
    lines = lines_of(turns, *ratios, Ratio("nothing", rate[3], (rate[0],)))
    assert lines[-1] == ["faster", "2.333", "2.000", "to", "3.000;", "goal", "2"]  # products were not measured
    turns.append(turn("products", **{"of a token": 0.5}))
    assert lines_of(turns, *ratios)[-1] == ["share", "3.500", "3.000", "to", "4.000"]


def test_answers_are_compared_with_those_of_the_reference():
    turns = [turn("alone", answers=[1, 2, 3]), turn("ours", answers=[1, 5, 3], reference="alone")]
    turns.append(turn("theirs", **{"not measured": "no bf16 here"}, reference="alone"))  # has no answers
    assert lines_of(turns)[-1] == ["ours:", "1", "of", "3", "answers", "differ", "from", "alone"]
    assert not any("differ" in line for line in lines_of(turns[1:]))


def test_what_was_measured_on_another_machine_is_apart():
    other = turn("ours", rate=9.0) | {"machine": {"processor": "another"}}
    lines = lines_of([turn("ours", rate=1.0), other])
    assert ["processor:", "another"] in lines and lines.count(["training:", "a", "config"]) == 2


def test_a_file_keeps_its_turns(tmp_path):
    path = tmp_path / "turns.jsonl"
    for rate in (1.0, 2.0):
        append(path, turn("ours", rate=rate))
    assert [turn["numbers"] for turn in read_turns(path)] == [{"rate": 1.0}, {"rate": 2.0}]


@pytest.mark.parametrize("line", ["no JSON", "3", json.dumps(["part"]), '{"part": "training"}'])
def test_a_file_of_something_else_is_refused(line, tmp_path):
    path = tmp_path / "turns.jsonl"
    append(path, turn("ours"))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ConfigError, match=r"turns\.jsonl:2: not a turn of this benchmark"):
        read_turns(path)


def test_an_unwritable_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"--output .*No such file or directory"):
        append(tmp_path / "no" / "turns.jsonl", {})
