from pathlib import Path
from typing import Any

import datasets
import pytest

from pipeline.data.corpus import given_texts
from pipeline.errors import ConfigError, NotPublished
from pipeline.inference.corpus import Answer
from pipeline.inference.hypotheses import Hypothesis, Wanted
from pipeline.inference.parts import Output
from pipeline.publishing.corpora import prepare, publish, render_card

FACTS: dict[str, dict[str, Any]] = {
    "model": {"name": "me/en-fr", "revision": "abc", "weights": "123"},
    "data": {"name": "me/texts", "split": "train", "column": "t.en", "revision": "def"},
    "settings": {
        "batch_size": 2,
        "wanted": {"num_best": 1, "scores": False, "seed": 7},
        "generation": {"num_beams": 5},
    },
}


@pytest.fixture
def make_output(tmp_path):
    def make(*texts: str, format: str = "jsonl") -> Output:
        facts = {**FACTS, "settings": {**FACTS["settings"], "format": format}}
        output = Output(Path(tmp_path, f"out.{format}"), facts)
        output.begin(False)
        corpus = given_texts(texts)
        said = lambda some: [Answer(text.content, [Hypothesis(text.content.upper())]) for text in some]  # noqa: E731
        output.join(output.fill(corpus.read(), 2, said, lambda some: None), format, Wanted())
        return output

    return make


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_a_data_set_is_what_was_written(make_output, hub, hub_name, format):
    output = make_output("a", "b", "c", format=format)
    prepare(hub_name, private=True)
    publish(output, hub_name)
    (*_, commit) = hub.commits(hub_name, "datasets")
    assert sorted(commit["files"]) == ["README.md", f"train.{format}"] and "me/en-fr" in commit["title"]
    assert hub.ask("/_repos")[f"datasets/{hub_name}"]["private"]
    rows = datasets.load_dataset(hub_name, split="train")
    assert rows[1] == {"source": "b", "target": "B"} and len(rows) == 3


def test_another_format_takes_the_place_of_the_first(make_output, hub, hub_name):
    prepare(hub_name, private=False)
    publish(make_output("a"), hub_name)
    publish(make_output("a", format="parquet"), hub_name)
    assert sorted(hub.commits(hub_name, "datasets")[-1]["files"]) == ["README.md", "train.parquet"]


def test_the_card_says_what_it_was_made_of(make_output):
    card = render_card(make_output("a", "b"), "me/answers")
    assert card.startswith("---\n") and "base_model: me/en-fr\n" in card and "\n# answers\n\n2 texts, " in card
    for part in ("| model | `me/en-fr` at commit `abc` |", "SHA-256 `123`", "| `seed` | 7 |", '"num_beams": 5'):
        assert part in card
    assert "| texts | `me/texts`, split `train`, column `t.en`, at commit `def` |" in card


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_a_secret_in_a_text_is_not_sent(make_output, hub, hub_name, format):
    output = make_output("a", "b", f"hf_{'a1' * 17}", format=format)
    prepare(hub_name, private=True)
    with pytest.raises(ConfigError, match=rf"out.{format}:3 holds what looks like an access token"):
        publish(output, hub_name)
    assert len(hub.commits(hub_name, "datasets")) == 1


def test_a_hub_that_refuses_it_leaves_the_file(make_output, hub, hub_name):
    output = make_output("a")
    with pytest.raises(NotPublished, match=r"out.jsonl is finished, but not on the Hub: .* --resume"):
        publish(output, hub_name)  # which is not there
    assert output.path.exists()


def test_who_may_not_write_is_told_before_the_work(hub, monkeypatch):
    with pytest.raises(ConfigError, match="--push-to-hub: me cannot write to others/"):
        prepare("others/x", private=True)
    with pytest.raises(ConfigError, match="--push-to-hub: name the repository to push to as owner/name"):
        prepare("x", private=True)
