"""`teacher-forcing inspect`."""

import json
import unicodedata

import pytest

from pipeline.commands.inspect import WIDTH, _columns, _fit
from tests.conftest import write_config

ROWS = [{"source": f"a b c {n}", "target": f"d e {n}"} for n in range(12)]
FAULTY = [
    ROWS[0],
    {"source": "x" * 90, "target": "你好" * 60},
    {"source": "\x1b[2J" * 30, "target": "e\u0301"},
    {"source": ""},
]


@pytest.fixture
def config(make_config, tmp_path):
    """The config of two corpora, whose names are as long as they may be."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name, rows in (("train", ROWS), ("b", ROWS + FAULTY), ("validation", ROWS[:2])):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    data = {"path": str(folder), "options": {}, "test": None, "mix": {"n" * 64: {}, "b": {"train": "b.jsonl"}}}
    return write_config(make_config, tmp_path / "config.yaml", data=data, tokenizer={"kind": "bpe"})


def test_a_report_fits_a_terminal(command, config, tmp_path):
    done = command("inspect", config, "--output", tmp_path / "lengths.png")
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert max(map(_columns, lines[:-1])) <= WIDTH and "\x1b" not in done.stdout
    assert lines[-1] == str(tmp_path / "lengths.png") and (tmp_path / "lengths.png").stat().st_size > 10_000
    text = " ".join(done.stdout.split())
    for part in ("rows 16, all there are", "bad rows 1", "max_length_ratio 3 (off)", "equals b.jsonl:1", "decomposed"):
        assert part in text, part
    assert not (tmp_path / "run").exists()


def test_the_same_as_json(command, config):
    done = command("inspect", config, "training.seed=3", "--rows", "5", "--json")
    document = json.loads(done.stdout)
    assert document["task"] == "sequence_to_sequence" and document["picture"] is None
    places = [report["place"] for report in document["texts"]]
    assert places == [f"mix.{'n' * 64}", "mix.b", "validation"]
    assert [report["is_whole"] for report in document["texts"]] == [False, False, True]
    assert sum(document["texts"][0]["lengths"]["source"]["counts"].values()) == 5
    assert document["texts"][0]["filters"]["max_length_ratio"] == {
        "value": 3,
        "is_on": False,
        "found": {"count": 0, "examples": []},
    }


def test_what_cannot_be_read_is_an_error(command, config, tmp_path):
    for words, said in (
        ([config, "--output", tmp_path / "x.doc"], "--output"),
        ([config, "--output", tmp_path / "no" / "x.png"], "No such file"),
        ([config, "data.mix.b.train=none.jsonl"], "data.mix.b: data: no file"),
        ([config, "data.mix.b.source=x"], "there is no column 'x'"),
        ([tmp_path / "none.yaml"], "no such config file"),
    ):
        done = command("inspect", *words)
        assert done.returncode == 2 and said in done.stderr.splitlines()[-1], done.stderr


def test_series_are_a_table(command, make_config, tmp_path):
    (tmp_path / "x.csv").write_text("load\n" + "".join(f"{n}\n" for n in range(50)))
    config = write_config(
        make_config,
        tmp_path / "config.yaml",
        task="forecasting",
        data={"path": str(tmp_path / "x.csv"), "options": {}, "validation": None, "test": None},
        forecasting={"series": ["load"]},
        tokenizer={"kind": "bpe"},
    )
    done = command("inspect", config)
    assert done.returncode == 0 and "24.5" in done.stdout and "shorter than one" in done.stdout, done.stderr
    done = command("inspect", config, "--output", tmp_path / "x.png")
    assert done.returncode == 2 and "forecasting has no texts" in done.stderr


def test_a_text_is_cut_to_columns():
    assert _fit("abc", 5, fill=True) == "abc  " and _fit("abcdef", 5) == "ab..."
    assert _fit("你好你好", 6) == "你..." and _columns("你好") == 4
    assert _columns(unicodedata.normalize("NFD", "é")) == 1 and _fit("a\nb\x07", 9) == "a b\\x07"
