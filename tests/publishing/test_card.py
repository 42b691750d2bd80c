"""The model card: true, complete, and read by huggingface_hub."""

import re

import pytest
import torch
from huggingface_hub import ModelCard
from ruamel.yaml import YAML
from transformers import TrainerState

from pipeline.publishing.card import render_card
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


def test_text_from_outside_stays_as_it_is(make_config, make_model, tmp_path):
    """A card is Markdown: nothing is escaped for HTML, and nothing in it is taken for a template."""
    example = "a <b> & {name} {{ name }} {% raw %} 'é' \\ \n end"
    config = make_config(training={"output_dir": str(tmp_path / "<x> & y")})
    text = render_card(config, SequenceToSequence(None), make_model(), STATE, {}, example)
    assert "# <x> & y\n" in text and "&lt;" not in text and "&amp;" not in text
    codes = re.findall(r"```python\n(.*?)```", text, re.S)
    said: list[str] = []
    exec(codes[0].partition("\n\n")[2], {"pipeline": lambda *_, **__: said.append, "print": lambda _: None})
    assert said == [example.replace("\n", " ")]  # as Python reads the string in the code
    configuration = re.search(r"```yaml\n(.*?)```", text, re.S)
    assert configuration is not None and YAML(typ="safe").load(configuration[1]) == config.model_dump()


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
