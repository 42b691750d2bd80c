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
