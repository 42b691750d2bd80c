"""What the keys of `data` say together: corpora, sets, stages, and what they take from one another."""

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.config import Config
from pipeline.data_config import Constant, DataConfig, FiltersConfig, Until
from pipeline.errors import ConfigError
from pipeline.tasks.config_loading import load_config, parse_config

MIX: dict[str, Any] = {
    "source": "en",
    "target": "de",
    "target_lang": "de",
    "mix": {
        "clean": {"path": "corpora/news"},
        "mined": {"path": "owner/mined", "source": "translation.en", "target": "translation.de", "rows": 4_000_000},
        "back": {"path": "back.jsonl", "source_tag": "<bt>", "train": "part-*.jsonl"},
    },
    "stages": [
        {"until": "2000000 rows", "weights": {"clean": 1, "mined": 2, "back": 0}},
        {"weights": {"clean": 4, "mined": 1, "back": 1}},
    ],
    "validation": {"news": {"path": "corpora/news", "split": "dev.jsonl"}, "talks": {"path": "talks", "target": "fr"}},
    "test": {"news": {"path": "corpora/news"}},
}


def make(**data) -> Config:
    return parse_config({"data": {**MIX, **data}, "training": {"max_steps": 1}})


def test_a_corpus_takes_what_it_does_not_give():
    data = make().data
    assert {place: (rows.path, split) for place, (rows, split) in data.places.items()} == {
        "mix.clean": ("corpora/news", "train"),
        "mix.mined": ("owner/mined", "train"),
        "mix.back": ("back.jsonl", "part-*.jsonl"),
        "validation.news": ("corpora/news", "dev.jsonl"),
        "validation.talks": ("talks", "validation"),
        "test.news": ("corpora/news", "test"),
    }
    assert data.corpora["mined"].columns == {"source": "translation.en", "target": "translation.de"}
    assert data.corpora["back"].marks == {"target_lang": Constant("de"), "source_tag": Constant("<bt>")}
    assert data.held_out("validation")["talks"].columns == {"source": "en", "target": "fr"}
    assert all(rows.mix is None for rows, _ in data.places.values())


def test_one_corpus_without_a_name():
    data = parse_config({"data": {"path": "pairs", "test": "test.jsonl"}}).data
    assert {place: split for place, (_, split) in data.places.items()} == {
        "train": "train",
        "validation": "validation",
        "test": "test.jsonl",
    }
    assert data.corpora == {"": data}


def test_a_corpus_without_weight_is_not_read():
    unused = [{"weights": {"clean": 1, "mined": 0, "back": 0}}]
    assert [*make(stages=unused).data.corpora] == ["clean"]
    assert [*make(stages=None, weights={"clean": 1, "mined": 0, "back": 2}).data.corpora] == ["clean", "back"]
    assert [*make(stages=None).data.corpora] == ["clean", "mined", "back"]


def test_a_mix_is_written_as_it_was_given(tmp_path):
    """What a corpus takes from `data` must not stand in its place when run.yaml is read again."""
    file = tmp_path / "run.yaml"
    file.write_text(make().to_yaml())
    again = load_config(file)
    assert again == make() and again.data.places == make().data.places


def test_commits_stay_with_their_data():
    pinned = make(path="owner/other", validation="validation", test=None).data.pinned(
        {"mix.mined": "a1", "validation": "b2"}
    )
    assert {place: rows.revision for place, (rows, _) in pinned.places.items()} == {
        "mix.clean": "b2",
        "mix.mined": "a1",
        "mix.back": "b2",
        "validation": "b2",
    }
    sets = make().data.pinned({"validation.news": "c3", "mix.mined": "a1"})
    assert sets.held_out("validation")["news"].revision == "c3" and sets.held_out("test")["news"].revision is None


@pytest.mark.parametrize(
    "text, until",
    [
        ("2000000 rows", Until(2_000_000)),
        ("1 row", Until(1)),
        (" 2  passes of clean ", Until(2, "clean")),
        ("1 more pass of a-b_c", Until(1, "a-b_c", is_more=True)),
        ("5 more rows", Until(5, is_more=True)),
        ("0 rows", None),
        ("-1 rows", None),
        ("1.5 passes of clean", None),
        ("passes of clean", None),
        ("2 epochs of clean", None),
        ("", None),
    ],
)
def test_until(text, until):
    assert Until.parse(text) == until


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mix": {}}, r"data.mix: there is nothing in it; leave it out"),
        ({"mix": {"a b": {"path": "x"}}}, r"data.mix.a b: give it a name of letters, digits, - and _"),
        ({"mix": {"a": {"row": 1}}}, r"unknown key data.mix.a.row; did you mean rows\?"),
        ({"mix": {"a": {"rows": 0}}}, r"data.mix.a.rows: Input should be greater than or equal to 1 \(given: 0\)"),
        ({"mix": {"a": {"path": "x", "mix": {}}}}, r"unknown key data.mix.a.mix"),
        ({"mix": {"a": {}}, "stages": None}, r"data.mix.a.path is missing, and there is no data.path in its place"),
        ({"mix": None}, r"data.stages: there is no data.mix whose shares it could say; leave it out"),
        ({"temperature": 5.0}, r"data.stages: data.temperature says the shares already; leave one of them out"),
        ({"temperature": 0, "stages": None}, r"data.temperature: Input should be greater than 0 \(given: 0\)"),
        ({"stages": []}, r"data.stages: List should have at least 1 item"),
        ({"stages": [{"weights": {"claen": 1}}]}, r"data.stages.0.weights: there is no corpus 'claen'; did you mean"),
        ({"stages": [{"weights": {"clean": 1}}]}, r"data.stages.0.weights: mined is missing; 0 leaves a corpus out"),
        (
            {"stages": None, "weights": {"clean": 1, "mined": -1, "back": 1}},
            r"data.weights.mined: a weight is 0 or more \(given: -1\)",
        ),
        (
            {"stages": None, "weights": {"clean": 0, "mined": 0, "back": 0}},
            r"data.weights: at least one corpus must have a weight",
        ),
        ({"stages": None, "weights": {"clean": True}}, r"data.weights.clean: Input should be a valid number"),
        ({"validation": "validation"}, r"data.validation: there is no data.path that could have a split 'validation'"),
        ({"validation": {}}, r"data.validation: there is nothing in it"),
        ({"validation": 5}, r"data.validation: Input should be a valid string \(given: 5\)"),
        ({"validation": {"news": 5}}, r"data.validation.news: Input should be a valid string \(given: 5\)"),
        ({"validation": {"news": {"pat": "x"}}}, r"unknown key data.validation.news.pat; did you mean path\?"),
        ({"test": {"news": "test"}}, r"data.test.news.path is missing, and there is no data.path in its place"),
        ({"target_lang": {"col": "lang"}}, r"unknown key data.target_lang.col; did you mean column\?"),
        ({"target_lang": 5}, r"data.target_lang: Input should be a valid string \(given: 5\)"),
    ],
)
def test_what_cannot_be(changes, message):
    with pytest.raises(ConfigError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    "until, message",
    [
        (None, r"data.stages.0.until: say where the stage ends, as in 2000000 rows, or 2 passes of back"),
        ("2 epochs", r"data.stages.0.until: say where the stage ends, .+ \(given: '2 epochs'\)"),
        ("2 passes of claen", r"data.stages.0.until: there is no corpus 'claen'; did you mean clean\?"),
        ("2 passes of back", r"data.stages.0.until: back has no weight in this stage, so it would never end"),
    ],
)
def test_a_stage_without_its_end(until, message):
    first, last = MIX["stages"]
    with pytest.raises(ConfigError, match=message):
        make(stages=[{**first, "until": until}, last])
    with pytest.raises(ConfigError, match=r"data.stages.1.until: the last stage goes on to the end of the training"):
        make(stages=[first, {**last, "until": "3 rows"}])


def test_the_path_is_needed_where_there_is_no_mix():
    with pytest.raises(ConfigError, match=r"data.path is missing; give it in the file or as data.path=..."):
        parse_config({"data": {"source": "en"}})


def test_the_documented_mixes_are_configs():
    """The YAML blocks of the section "Several corpora" of configs/README.md."""
    section = Path("configs/README.md").read_text().split("### Several corpora\n")[1].split("\n### ")[0]
    blocks = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
    mixes = [parse_config(YAML(typ="safe").load(block)).data for block in blocks]
    assert [[*(data.mix or {})] for data in mixes] == [["clean", "mined", "back"], ["clean", "medium", "dirty"]]
    assert mixes[1].stages is not None and mixes[1].stages[0].until == "2 more passes of clean"


def test_the_documented_filters_are_a_config():
    """The YAML block of the section "Filters" of configs/README.md, and its table of keys."""
    section = Path("configs/README.md").read_text().split("### Filters\n")[1].split("\n### ")[0]
    (block,) = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
    rules = {
        name: [*corpus.filters.rules]
        for name, corpus in parse_config(YAML(typ="safe").load(block)).data.corpora.items()
    }
    both = ["drop_held_out", "drop_duplicates"]
    assert rules == {"news": both, "mined": ["min_script_share", "match_digits", "max_length_ratio", *both]}
    keys = re.findall(r"^\| `(\w+): (.*?)` \|", section, re.MULTILINE)
    values = YAML(typ="safe").load("\n".join(f"{name}: {value}" for name, value in keys))
    assert [*FiltersConfig(**values).rules] == [name for name, _ in keys] == [*FiltersConfig.model_fields]


def test_filters_of_a_corpus():
    """Its keys replace those of `data`, one by one; what it does not say is not written."""
    data = make(
        filters={"drop_identical": True, "max_length_ratio": 3.0},
        mix={**MIX["mix"], "back": {**MIX["mix"]["back"], "filters": {"drop_identical": False, "max_word_length": 9}}},
    ).data
    rules = {name: corpus.filters.rules for name, corpus in data.corpora.items()}
    assert rules["back"] == {"max_word_length": 9, "max_length_ratio": 3.0}
    assert rules["clean"] == {"drop_identical": True, "max_length_ratio": 3.0}
    written = data.model_dump()
    assert written["mix"]["back"]["filters"] == {"drop_identical": False, "max_word_length": 9}
    assert "filters" not in written["mix"]["clean"] and DataConfig(**written) == data


@pytest.mark.parametrize(
    "filters, message",
    [
        ({"max_length_ratio": 0.5}, r"data.filters.max_length_ratio: Input should be greater than or equal to 1"),
        ({"min_script_share": {"source": {"Lateen": 0.8}}}, r"data.filters.min_script_share: Lateen is not a script"),
        ({"min_script_share": {"source": {"Latin}": 0.8}}}, r"data.filters.min_script_share: Latin\} is not a script"),
        (
            {"min_script_share": {"source": {"Latin": 80}}},
            r"data.filters.min_script_share.source.Latin: Input should be",
        ),
        ({"min_script_share": 0.8}, r"data.filters.min_script_share: Input should be a valid dictionary"),
        ({"drop_duplicate": True}, r"unknown key data.filters.drop_duplicate; did you mean drop_duplicates\?"),
    ],
)
def test_filters_that_cannot_be(filters, message):
    with pytest.raises(ConfigError, match=message):
        make(filters=filters)
