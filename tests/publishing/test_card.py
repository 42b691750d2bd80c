"""The model card: true, complete, and read by huggingface_hub."""

import ast
import re

import pytest
import torch
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from markdown_it.token import Token
from ruamel.yaml import YAML
from transformers import TrainerState

from pipeline.publishing.card import render_card
from pipeline.tasks.forecasting import Forecasting
from pipeline.tasks.registry import TASKS
from pipeline.tasks.sequence_to_sequence import SequenceToSequence

STATE = TrainerState(global_step=1234, max_steps=1234)


def test_the_card_is_true_and_parses(make_config, make_model):
    scores = {"test": {"loss": 0.25, "sacrebleu": 41.5, "sacrebleu_signature": "nrefs:1|case:mixed"}}
    task = SequenceToSequence(None)
    text = render_card(make_config(), task, make_model(), STATE, scores, 'say "x"')
    data = ModelCard(text).data
    assert data.library_name == "transformers" and data.datasets is None and data.base_model is None
    results = {result.metric_type: result.metric_value for result in data.eval_results}
    assert results == {"loss": 0.25, "sacrebleu": 41.5}
    for said in ("trained from scratch", "1,234 optimizer steps", "`reversal`", r"nrefs:1\|case:mixed", "Not stated"):
        assert said in text
    assert "fine-tuned" not in text and r'translate("say \"x\"")' in text


def render_markdown(text: str) -> list[Token]:
    """Return the blocks of a card behind its front matter, as a Markdown reader sees them."""
    return MarkdownIt("commonmark").enable("table").parse(ModelCard(text).text)


HOSTILE = [
    "a <b> & {name} {{ name }} {% raw %} 'é' \\ \n end",
    "\r\n```\r# Owned\r\r<script>alert(1)</script>",
    "```\n````\n# Owned",
    '"); print("owned") #',
    "x\n---\nlicense: mit\n---\n# Owned",
    "](javascript:alert(1)) [a](javascript:alert(1)) | <img src=x onerror=alert(1)> |",
    "`` ` ``` <!-- \u2028 # Owned \u202e \x0b",
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_text_from_outside_is_shown_and_nothing_else(make_config, make_model, hostile):
    """In names, scores and samples: no block, tag or link comes of it, and code stays the code that it is."""
    names = {"path": hostile, "train": hostile, "source": hostile, "target": hostile, "revision": hostile}
    config = make_config(data=names, hub={"model_id": f"me/{hostile}", "license": hostile})
    scores = {hostile: {hostile: 0.5, "signature": hostile}}
    plain = {"path": "p", "train": "t", "source": "s", "target": "t", "revision": "r"}
    expected = make_config(data=plain, hub={"model_id": "me/x", "license": "mit"})
    task, model = SequenceToSequence(None), make_model()  # type: ignore[arg-type]
    text = render_card(config, task, model, STATE, scores, hostile, phases=[hostile])
    blocks = render_markdown(text)
    usual = render_markdown(
        render_card(expected, task, model, STATE, {"test": {"loss": 0.5, "signature": "x"}}, "x", ["x"])
    )
    assert [block.type for block in blocks] == [block.type for block in usual]
    inner = [token for block in blocks for token in block.children or []]
    assert {token.type for token in inner} <= {"text", "code_inline", "softbreak", "image", "text_special"}
    assert [token.attrs["src"] for token in inner if token.type == "image"] == ["training_curves.png"]
    *codes, configuration = [block.content for block in blocks if block.type == "fence"]
    said: list[object] = []
    for code in codes:
        compile(code, "card", "exec")
        said += [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    assert hostile in said  # as Python reads the string in the code
    assert YAML(typ="safe").load(configuration) == config.model_dump()
    assert ModelCard(text).data.license == hostile


def test_remarks_on_scores_stand_below_them(make_config, make_model):
    config = make_config("forecasting", forecasting={"series": ["OT"]})
    values = {"mse": 0.75, "mae": 0.5, "repeat_last_mse": 0.5, "repeat_last_mae": 0.6}
    text = render_card(config, Forecasting, make_model(), STATE, {"test": values})  # type: ignore[arg-type]
    table = text.index("| test | repeat_last_mae | 0.6000 |\n\n**On test, this model is worse than repeating")
    assert table < text.index("\n\n## Use")
    assert "worse" not in render_card(config, Forecasting, make_model(), STATE, {"test": values | {"mse": 0.5}})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_a_card(make_config, name):
    """Its texts can be filled in, its code compiles, and its pictures are shown."""
    task = TASKS[name]

    class OwnModel(torch.nn.Module):
        _auto_class = "AutoModel"

        def num_parameters(self):
            return 5

    sections = {"forecasting": {"series": ["HUFL", "OT"]}}
    config = make_config(name, **{name: sections[name]} if name in sections else {})
    # A card takes only what the class of a task says, so the class stands for an instance here.
    text = render_card(config, task, OwnModel(), STATE, {})  # type: ignore[arg-type]
    data = ModelCard(text).data
    assert data.pipeline_tag == task.card.pipeline_tag and name in data.tags
    for code in re.findall(r"```python\n(.*?)```", text, re.S):
        compile(code, name, "exec")
        assert "trust_remote_code=True" in code
    assert all(f"![{caption}]({file})" in text for file, caption in task.pictures.items())
    assert "\n\n\n" not in text and text.endswith("```\n")


def test_what_changed_in_a_run_is_listed(make_config, make_model):
    task = SequenceToSequence(None)
    text = render_card(
        make_config(), task, make_model(), STATE, {}, phases=["from step 5 on: a: 1", "from step 9 on: b"]
    )
    assert "settings of the last steps" in text and "\n- from step 5 on: a: 1\n- from step 9 on: b\n" in text
    assert "settings of the last steps" not in render_card(make_config(), task, make_model(), STATE, {})
