"""From names in a config to the section of a task; keys of older versions are still read."""

import pytest

from pipeline.errors import ConfigError
from pipeline.tasks.config_loading import load_config, parse_config


def test_keys_that_moved_to_their_task_are_still_read(tmp_path, caplog):
    path = tmp_path / "old.yaml"
    path.write_text("task: language_modeling\ndata:\n  path: novel.txt\n  labels:\n  bptt: 35\n")
    config = load_config(path)
    assert config.task_settings.bptt == 35
    assert caplog.messages == [f"{path}:5: data.bptt is now language_modeling.bptt"]
    with pytest.raises(ConfigError, match=rf"{path}:5: language_modeling.bptt: .* greater than or equal to 1"):
        path.write_text(path.read_text().replace("35", "0"))
        load_config(path)
    with pytest.raises(ConfigError, match=r"override 'data.bptt=0': language_modeling.bptt: "):
        load_config(path, ["data.bptt=0"])


def test_a_key_that_moved_to_another_task_is_named(caplog):
    parse_config({"data": {"path": "x", "bptt": 35, "series": None}})
    assert caplog.messages == ["data.bptt is now language_modeling.bptt, which sequence_to_sequence does not use"]


def test_an_old_key_on_the_command_line_wins_over_the_file(tmp_path):
    path = tmp_path / "new.yaml"
    path.write_text("task: language_modeling\ndata: {path: novel.txt}\nlanguage_modeling: {bptt: 35}\n")
    assert load_config(path, ["data.bptt=3"]).task_settings.bptt == 3


def test_a_key_is_not_given_in_both_places():
    with pytest.raises(ConfigError, match=r"data.bptt is now language_modeling.bptt, which is given too"):
        parse_config({"task": "language_modeling", "data": {"path": "x", "bptt": 3}, "language_modeling": {"bptt": 4}})


@pytest.mark.parametrize(
    "values, message",
    [
        ({"task": "forecasting"}, "forecasting.series is missing; give it in the file or as forecasting.series="),
        (
            {"task": "forecasting", "forecasting": {"sries": ["a"]}},
            "unknown key forecasting.sries; did you",
        ),
        ({"forecasting": {"series": ["a"]}}, "unknown key forecasting"),
        ({"task": "language_modeling", "language_modeling": {"bptt": "x"}}, "language_modeling.bptt: Input should be"),
    ],
)
def test_the_section_of_a_task_is_checked(values, message):
    with pytest.raises(ConfigError, match=message):
        parse_config({"data": {"path": "x"}, **values})


def test_metrics_default_to_the_tasks_own():
    assert parse_config({"data": {"path": "x"}}).evaluation.metrics == ["exact_match"]
    assert parse_config({"task": "language_modeling", "data": {"path": "x"}}).evaluation.metrics == []


@pytest.mark.parametrize(
    "task, filters, message",
    [
        (
            "text_classification",
            {"drop_identical": True},
            "drop_identical: text_classification has no target text to comp",
        ),
        (
            "text_classification",
            {"match_digits": True},
            "match_digits: text_classification has no target text to compare",
        ),
        ("text_classification", {"max_length_ratio": 3}, "max_length_ratio: text_classification has no target text"),
        (
            "text_classification",
            {"min_script_share": {"target": {"Latin": 1}}},
            "min_script_share: the target of text_cl",
        ),
        ("language_modeling", {"max_word_length": 9}, "max_word_length: the rows of language_modeling are one text"),
        ("forecasting", {"drop_duplicates": True}, "drop_duplicates: the rows of forecasting are not texts; remove"),
        ("sequence_to_sequence", {"drop_held_out": True}, "drop_held_out: there is no set of validation or test"),
        (
            "sequence_to_sequence",
            {"drop_duplicates": True},
            "drop_duplicates: a stream from the Hub or the web is not read twice",
        ),
    ],
)
def test_filters_without_anything_to_look_at(task, filters, message):
    data = {"path": "owner/name", "streaming": True, "filters": filters, "validation": None}
    values = {"task": task, "data": data} | ({"forecasting": {"series": ["a"]}} if task == "forecasting" else {})
    with pytest.raises(ConfigError, match=f"^data.filters.{message}"):
        parse_config(values)


def test_filters_of_a_corpus_are_refused_at_their_place(tmp_path):
    path = tmp_path / "mix.yaml"
    path.write_text(
        "data:\n  validation:\n  mix:\n    a: {path: x}\n    b:\n      path: y\n"
        "      filters:\n        drop_held_out: true\n"
    )
    with pytest.raises(ConfigError, match=rf"^{path}:8: data.mix.b.filters.drop_held_out: there is no set"):
        load_config(path)
    load_config(path, ["data.mix.b.filters.drop_held_out=false"])
    with pytest.raises(
        ConfigError, match=r": data.filters.drop_held_out: of data.mix.a, there is no set of validation"
    ):
        load_config(path, ["data.filters.drop_held_out=true"])


def test_filters_of_a_classifier():
    rules = {
        "max_word_length": 9,
        "min_script_share": {"source": {"Latin": 1}},
        "drop_held_out": True,
        "drop_duplicates": True,
    }
    parse_config({"task": "text_classification", "data": {"path": "x", "filters": rules}})
