"""`teacher-forcing compare`."""

import json

import pytest
from sacrebleu.significance import PairedTest

from pipeline.run import train

REFERENCES = [f"the dog number {number} sleeps" for number in range(8)]
WORSE = [text.replace("dog", "cat") for text in REFERENCES]


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    monkeypatch.setattr(PairedTest, "_DEFAULT_SAMPLES", {"bs": 20, "ar": 20})


@pytest.fixture
def files(tmp_path):
    """Two systems, one of them as JSON lines with all that is known, and the references."""
    rows = [
        {"source": f"s {number}", "reference": text, "prediction": text, "corpus": "ab"[number // 4]}
        for number, text in enumerate(REFERENCES)
    ]
    (tmp_path / "good.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "bad.txt").write_text("".join(f"{text}\r\n" for text in WORSE))
    (tmp_path / "references.txt").write_text("".join(f"{text}\n" for text in REFERENCES))
    return tmp_path


def test_text_page_and_json(command, files):
    outputs = ["--output", files / "page.html"]
    done = command("compare", files / "good.jsonl", f"other={files / 'bad.txt'}", *outputs)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["8", "rows", "BLEU", "↑", "chrF2", "↑", "chrF2++", "↑", "TER", "↓"]
    assert lines[1].startswith("good.jsonl") and lines[2].startswith("other") and lines[3].startswith("  difference")
    assert lines[4].startswith("  p, paired bootstrap") and lines[4].count("*") == 4
    assert "By corpus: BLEU" in done.stdout and "8 of 8 answers of other differ from those of good.jsonl" in done.stdout
    assert "  other       the [cat] number 0 sleeps" in lines and "  good.jsonl  the [dog] number 0 sleeps" in lines
    assert any(line.startswith("BLEU: nrefs:1|bs:20|seed:") for line in lines) and len(lines) < 100
    assert all(line == line.rstrip() and len(line) < 130 for line in lines)
    result = json.loads(command("compare", files / "good.jsonl", f"other={files / 'bad.txt'}", "--json").stdout)
    assert result["systems"] == ["good.jsonl", "other"] and len(result["sentence_scores"]["other"]) == 8
    assert "<title>Comparison: good.jsonl, other</title>" in (files / "page.html").read_text()


def test_texts_need_references(command, files):
    done = command("compare", files / "bad.txt", files / "references.txt", "--json")
    assert done.returncode == 2 and done.stderr.startswith("error: --references: ")
    words = [files / "bad.txt", "--references", files / "references.txt", files / "references.txt"]
    done = command("compare", *words, "--metrics", "chrf", "--json", "--sources", files / "references.txt")
    (metric,) = json.loads(done.stdout)["metrics"]
    assert metric["title"] == "chrF2" and metric["signatures"]["paired bootstrap"].startswith("nrefs:2|")


def test_a_page_does_not_replace_what_is_compared(command, files):
    before = (files / "bad.txt").read_bytes()
    for output in ("bad.txt", "references.txt"):
        words = ["--references", files / "references.txt", "--output", files / output]
        done = command("compare", files / "bad.txt", *words)
        assert done.returncode == 2 and f"{output} is what is compared" in done.stderr
    assert (files / "bad.txt").read_bytes() == before


def test_what_a_terminal_shows_is_harmless(command, files):
    hostile = "\x1b[31mred\x1b[0m " + "long " * 300
    (files / "bad.txt").write_text("".join(f"{text}\n" for text in [hostile, *REFERENCES[1:]]))
    done = command("compare", files / "good.jsonl", files / "bad.txt", "--metrics", "bleu")
    assert done.returncode == 0 and "\x1b" not in done.stdout and "\\x1b[31mred" in done.stdout
    assert max(map(len, done.stdout.splitlines())) < 330


def test_a_folder_answers_its_own_rows_or_those_of_a_file(command, finished_run, tmp_path):
    file = tmp_path / "predictions.jsonl"
    assert command("score", finished_run, "--predictions", file).returncode == 0
    done = command("compare", f"run={finished_run}", file, "--metrics", "exact_match", "chrf", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["num_rows"] == 8 and result["pairs"][0]["num_different"] == 0
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for name in ("source", "reference"):
        (tmp_path / name).write_text("".join(f"{row[name]}\n" for row in rows[:3]))
    options = ["--sources", tmp_path / "source", "--references", tmp_path / "reference", "--json"]
    done = command("compare", finished_run, finished_run / "checkpoint-2", *options)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_rows"] == 3
    assert json.loads(done.stdout)["systems"] == [finished_run.name, "checkpoint-2"]
    done = command("compare", finished_run, tmp_path / "source", "--split", "validation")
    assert done.returncode == 2 and "has 3 rows and" in done.stderr and "line 4 is the first" in done.stderr


@pytest.mark.parametrize(
    "words, said",
    [
        (["good.jsonl", "none.txt"], "none.txt: no such folder or file"),
        (["x=good.jsonl", "x=bad.txt"], "two systems have the name x; give each its own, such as other="),
        (["good.jsonl", "bad.txt", "--output", "."], "--output . cannot be written"),
        (["good.jsonl", "bad.txt", "--output", "no/x.html"], "--output no/x.html cannot be written"),
        (["good.jsonl", "bad.txt", "--metrics", "blue"], "--metrics: 'blue' is unknown; did you mean bleu"),
        (["good.jsonl", "--tokenize", "xy"], "evaluation.sacrebleu.tokenize: "),
        (["good.jsonl", "bad.txt", "--references", "none"], "none: No such file"),
        (["good.jsonl", "bad.txt", "--sources", "references.txt"], "good.jsonl:1: the source is 's 0', but in"),
        (["\udcff"], "system: invalid UTF-8"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_mistakes_are_said(command, files, monkeypatch, words, said):
    monkeypatch.chdir(files)
    done = command("compare", *words)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {said}"), done.stderr


def test_sets_of_a_run_are_corpora(command, finished_folder, tmp_path):
    """The config of a run may name several test sets; `score` says of each row which it is of."""
    config = finished_folder / "run.yaml"
    config.write_text(config.read_text().replace("  test: test\n", "  test: {a: test, b: {split: validation}}\n"))
    (finished_folder / "manifest.json").unlink()
    file = tmp_path / "predictions.jsonl"
    assert command("score", finished_folder, "--predictions", file).returncode == 0
    assert [json.loads(line)["corpus"] for line in file.read_text().splitlines()] == ["a"] * 8 + ["b"] * 8
    done = command("compare", finished_folder, file, "--metrics", "chrf", "--json")
    assert done.returncode == 0, done.stderr
    breakdowns = {breakdown["title"]: breakdown["groups"] for breakdown in json.loads(done.stdout)["breakdowns"]}
    assert [(group["name"], group["size"]) for group in breakdowns["By corpus"]] == [("a", 8), ("b", 8)]


def write_rows(folder, rows):
    folder.mkdir()
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


@pytest.mark.slow
def test_a_classifier_is_right_or_wrong_and_others_give_no_texts(command, make_config, tmp_path):
    write_rows(tmp_path / "reviews", [{"source": f"a film {n}", "target": ("bad", "good")[n % 2]} for n in range(20)])
    data = {"path": str(tmp_path / "reviews"), "options": {}}
    model = {"d_model": 16, "attention_heads": 4}
    folder = train(make_config(task="text_classification", data=data, model=model)).output_dir
    done = command("compare", folder / "checkpoint-2", folder / "checkpoint-4", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [metric["title"] for metric in result["metrics"]] == ["exact match"] and result["num_rows"] == 20
    accuracy = json.loads((folder / "metrics.json").read_text())["test"]["accuracy"]
    assert accuracy in [score["score"] for score in result["metrics"][0]["scores"]]

    write_rows(tmp_path / "load", [{"load": n % 5} for n in range(90)])
    changes = {
        "data": {"path": str(tmp_path / "load"), "options": {}},
        "model": {"d_model": 16, "context_length": 12, "prediction_length": 4, "patch_length": 4, "patch_stride": 2},
        "forecasting": {"series": ["load"]},
        "training": {"output_dir": str(tmp_path / "forecaster")},
    }
    folder = train(make_config(task="forecasting", **changes)).output_dir
    done = command("compare", folder)
    assert done.returncode == 2 and "this model gives no texts to compare; teacher-forcing score" in done.stderr
