"""What holds for every task: a resumed run is the uninterrupted one, and what is published works elsewhere."""

import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from pipeline.errors import ConfigError
from pipeline.run import RunFolder, train
from pipeline.tasks.base import Task
from tests.conftest import HUB
from tests.tasks.conftest import WRITERS, rewind


@pytest.mark.parametrize("task", WRITERS)
def test_a_resumed_run_is_the_uninterrupted_one(finished, rewound, task):
    """Bit by bit; the state that is carried from batch to batch is part of it."""
    before = finished(task).output_dir
    result = train(rewound(task))
    assert result.scores == RunFolder(before).read_scores() and not result.was_finished
    expected = load_file(before / "model.safetensors")
    for name, tensor in load_file(result.output_dir / "model.safetensors").items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(
    "task, changes",
    [
        ("text_classification", {"augmentation": {"swap": 0.2, "delete": 0.2, "insert": 0.2}}),
        ("language_modeling", {"training": {"gradient_accumulation_steps": 2}}),
    ],
    ids=["augmented", "lstm-accumulating"],
)
def test_noise_and_carried_state_resume(make_task, task, changes):
    config = make_task(task, **changes)
    first = train(config)
    expected = load_file(first.output_dir / "model.safetensors")
    rewind(first.output_dir, 2)
    again = train(config)
    assert again.scores == first.scores and not again.was_finished
    for name, tensor in load_file(again.output_dir / "model.safetensors").items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("task", ["language_modeling", "forecasting"])
def test_what_has_no_source_cannot_be_augmented_nor_compared(make_task, task):
    with pytest.raises(ConfigError, match=f"augmentation: {task} has no source to change"):
        train(make_task(task, augmentation={"delete": 0.1}))
    with pytest.raises(ConfigError, match=r"evaluation\.metrics: .* is scored by loss, .* only; give \[\]"):
        train(make_task(task, evaluation={"metrics": ["exact_match"]}))


def test_what_is_published_works_as_its_card_says(finished, tmp_path):
    """From the Hub, in a fresh process, with only transformers."""
    codes = []
    for task in WRITERS:
        config = finished(task)
        folder = config.output_dir
        codes += re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
        assert len(HUB.commits(config.hub.model_id)) == 2  # the first one is empty
    assert len(codes) == 3 and all("trust_remote_code=True" in code for code in codes)
    codes.append("import sys; assert not any(name.startswith('pipeline.') for name in sys.modules)")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(codes)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    label, text, forecast = done.stdout.split("\n", 2)
    assert "'label'" in label and text.strip() and forecast.startswith("tensor(")


def test_a_task_that_lacks_something_is_refused_when_it_is_defined():
    with pytest.raises(TypeError, match=r"Half is not a whole task: it lacks .*collate, .*predict, .*auto_class, card"):
        type("Half", (Task,), {})
    whole = {name: lambda *_: None for name in Task.__abstractmethods__} | {"auto_class": object, "card": None}
    type("Whole", (Task,), whole)
    with pytest.raises(TypeError, match="it lacks loss, pack"):
        type("Packing", (Task,), whole | {"can_pack": True, "trains_other_models": True})
    for scores in (("loss", "accuracy"), {"loss": "lower", "accuracy": "more"}):
        with pytest.raises(TypeError, match=r'Silent.scores: say of each which value is better, as in .*"lower"'):
            type("Silent", (Task,), whole | {"scores": scores})
