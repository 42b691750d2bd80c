"""The model card: true, complete, and read by huggingface_hub."""

import ast
import re

import pytest
import torch
from huggingface_hub import ModelCard
from ruamel.yaml import YAML
from transformers import TrainerState

from pipeline.publishing.card import Loading, put_use, render_card, says_use
from pipeline.tasks.forecasting import Forecasting
from pipeline.tasks.registry import TASKS
from pipeline.tasks.sequence_to_sequence import SequenceToSequence
from tests.publishing.samples import HOSTILE, render_markdown

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


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"data": {"source": "en", "target": "fr"}}, (["en", "fr"], None, "translation")),
        ({"data": {"source": "translation.no", "target": "translation.nb"}}, (["no", "nb"], None, "translation")),
        ({"data": {"source_lang": "en_XX", "target_lang": "fr_XX"}}, (["en", "fr"], None, "translation")),
        ({"data": {"source_lang": "fra_Latn", "target_lang": "ceb_Latn"}}, (["fr", "ceb"], None, "translation")),
        ({"hub": {"language": ["no", "pt-BR"]}}, (["no", "pt"], ["pt-BR"], "translation")),
        ({"hub": {"language": ["de"]}, "data": {"source": "en", "target": "fr"}}, (["de"], None, None)),
        ({"hub": {"language": []}, "data": {"source": "en", "target": "fr"}}, (None, None, "translation")),
        ({"data": {"source": "id", "target": "text"}}, (None, None, "translation")),
        ({"data": {"source": "en", "target": "en"}}, (None, None, "translation")),
        ({}, (None, None, "translation")),
    ],
)
def test_the_hubs_filters_find_a_model(make_config, make_model, sections, expected):
    """By its languages and its task; no is Norwegian, and no `false`."""
    scores = {"test": {"loss": 0.25}}
    config = make_config(**sections)
    text = render_card(config, SequenceToSequence(None), make_model(), STATE, scores)  # type: ignore[arg-type]
    data = ModelCard(text).data
    assert (data.language, data.get("language_bcp47"), data.pipeline_tag) == expected
    task_type = "translation" if expected[2] else "text2text-generation"
    assert {result.task_type for result in data.eval_results} == {task_type}


def test_columns_of_a_classifier_are_no_languages(make_config, make_model):
    config = make_config("text_classification", data={"source": "en", "target": "is"})
    assert ModelCard(render_card(config, TASKS["text_classification"], make_model(), STATE, {})).data.language is None  # type: ignore[arg-type]


@pytest.mark.parametrize("hostile", [*HOSTILE, "--> <!-- end of use -->", '"; publishing -->'])
def test_the_use_of_a_model_is_written_anew(make_config, make_model, hostile):
    """For its form and its name on the Hub, with the example that the card had; nothing else changes."""
    config, model = make_config(hub={"model_id": "me/x"}), make_model()
    task = SequenceToSequence(None)  # type: ignore[arg-type]
    card = render_card(config, task, model, STATE, {}, hostile)
    stock = put_use(card, task, Loading("MarianMTModel", is_converted=True), f"me/{hostile}")
    assert (
        says_use(stock) and "trust_remote_code=True" not in stock and "as `MarianMTModel`, in transformers 4" in stock
    )
    both = put_use(stock, task, Loading("MarianMTModel", has_pipeline=True, is_converted=True), "me/y")
    said: list[object] = []
    for code in [block.content for block in render_markdown(both) if block.type == "fence"][:-1]:
        said += [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    assert said.count(hostile) == 2 and said.count("me/y") == 3
    own = Loading(type(model).__name__, has_code=True, has_pipeline=True)
    assert put_use(both, task, own, "me/x") == card


def test_the_use_is_added_to_a_card_that_does_not_say_it():
    stock = Loading("MarianMTModel", is_converted=True)
    card = put_use("# By hand\n\nBest model.\n", SequenceToSequence, stock, "me/x")
    assert card.startswith("# By hand\n\nBest model.\n\n## Use\n") and card.endswith("<!-- end of use -->\n")
    assert put_use(card, SequenceToSequence, stock, "me/x") == card


def test_scores_are_of_the_set_that_they_name(make_config, make_model):
    """A score of one set is not that of another whose name begins it, and the mean of all is of none."""
    config = make_config(data={"test": {"a": "test", "a_b": "test"}})
    names = ("loss", "a_loss", "a_en-de_loss", "a_b_loss")
    scores = {"test": {name: float(number) for number, name in enumerate(names)}}
    card = render_card(config, SequenceToSequence(None), make_model(), STATE, scores)
    results = ModelCard(card).data.eval_results
    found = {(result.dataset_config, result.metric_type): result.metric_value for result in results}
    assert found == {("a", "loss"): 1, ("a", "en-de_loss"): 2, ("a_b", "loss"): 3}


def test_filters_are_counted_by_corpus_and_rule(make_config, make_model):
    counts = {"mined|": {"rows_read": 2_000, "drop_identical": 50, "match_digits": 0}}
    scores = {"training": {"skipped_rows": 0, "filters": counts}, "test": {"loss": 0.5}}
    text = render_card(make_config(), SequenceToSequence(None), make_model(), STATE, scores)  # type: ignore[arg-type]
    assert (
        "| mined\\| | 2,000 | `drop_identical` | 50 (2.50%) |\n| mined\\| | 2,000 | `match_digits` | 0 (0.00%) |"
        in text
    )
    tables = [block for block in render_markdown(text) if block.type == "table_open"]
    assert len(tables) == 2 and "filters" not in str(ModelCard(text).data)
    assert "Filters" not in render_card(make_config(), SequenceToSequence(None), make_model(), STATE, {"test": {}})  # type: ignore[arg-type]
