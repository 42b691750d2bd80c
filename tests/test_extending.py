"""A task and a model from outside the package, as pipeline/README.md tells it: the very blocks of that document."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

DOCUMENT = (ROOT / "pipeline" / "README.md").read_text(encoding="utf-8")
BLOCKS = {  # file name -> text of every block whose first line names a file
    name: text
    for text, name in re.findall(
        r"^```(?:python|yaml)\n(# (\w+\.(?:py|yaml)).*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL
    )
}
AFTERWARDS = """
from pipeline import generate, load_trained

model, task = load_trained("runs/{name}")
print(type(model).__name__, type(task).__name__, generate(model, task, [{text!r}])[0])
"""


def write_numbers(folder: Path) -> None:
    """Texts whose number is how many words they have, some of which count twice."""
    generator = random.Random(0)
    folder.mkdir()
    for split, rows in (("train", 400), ("validation", 40), ("test", 40)):
        with (folder / f"{split}.jsonl").open("w") as stream:
            for _ in range(rows):
                words = generator.choices(["one", "small", "word", "twice"], k=5)
                print(json.dumps({"source": " ".join(words), "target": 5 + words.count("twice")}), file=stream)


def run_outside(folder: Path, name: str, text: str) -> tuple[dict, str]:
    """Run a document's script in a folder, then load and use what it left; return its scores and what is printed."""
    for suffix in ("py", "yaml"):
        (folder / f"{name}.{suffix}").write_text(BLOCKS[f"{name}.{suffix}"], encoding="utf-8")
    script = f"import runpy; runpy.run_path('{name}.py', run_name='__main__')" + AFTERWARDS.format(name=name, text=text)
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    scores = json.loads((folder / "runs" / name / "metrics.json").read_text())["test"]
    return scores, done.stdout.splitlines()[-1]


@pytest.mark.parametrize("name", ["text_regression", "recurrent_translator"])
def test_both_files_of_a_walk_through_are_in_the_document(name):
    assert {f"{name}.py", f"{name}.yaml"} <= BLOCKS.keys()


@pytest.mark.slow
def test_a_task_from_outside_trains_and_scores(tmp_path):
    write_numbers(tmp_path / "numbers")
    scores, line = run_outside(tmp_path, "text_regression", "one twice word")
    assert set(scores) == {"loss", "squared_error"} and scores["squared_error"] < 0.05  # of a variance of about 0.9
    assert line.startswith("MeanOfWords TextRegression ")
    card = (tmp_path / "runs" / "text_regression" / "README.md").read_text()
    assert "pipeline_tag: text-regression" in card and "number in column `target`" in card


@pytest.mark.slow
def test_a_second_model_of_a_task_trains_and_scores(tmp_path):
    scores, line = run_outside(tmp_path, "recurrent_translator", "3 1 2 5")
    assert scores["token_accuracy"] > 0.95 and scores["exact_match"] > 0.9
    assert line == "RecurrentTranslator SequenceToSequence 5 2 1 3"
