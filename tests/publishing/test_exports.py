"""How exports compare with their model, in its card."""

import copy
import json
import logging

import pytest
from transformers import TrainerState

from pipeline.errors import ConfigError
from pipeline.manifest import describe
from pipeline.publishing.card import render_card
from pipeline.publishing.exports import Report, put_exports, read_reports
from pipeline.tasks.sequence_to_sequence import SequenceToSequence
from tests.publishing.samples import COMPUTED, HOSTILE, SEARCHED, render_markdown

REPORTS = [Report.model_validate(report) for report in (SEARCHED, COMPUTED)]


def test_exports_stand_in_front_of_the_use(make_config, make_model):
    card = render_card(make_config(), SequenceToSequence(None), make_model(), TrainerState(), {})  # type: ignore[arg-type]
    shown = put_exports(card, REPORTS)
    assert (
        "| ctranslate2 | int8 | 1,000 | 897 | 846 | -0.05 (-0.31 to +0.21) | 0.25 times | "
        "2.50 times greedy, 3.00 times beam 4 |"
    ) in shown
    assert (
        "| onnx | - | 500 | - | 499 of 500 | 1.5e-06 (share of the largest logit) | 1.05 times | 1.50 times |" in shown
    )
    assert shown.index("## Scores") < shown.index("## Exports") < shown.index("## Use") and "\n\n\n" not in shown
    assert put_exports(shown, REPORTS) == shown and put_exports(shown, []) == card
    assert [block.type for block in render_markdown(shown)].count("table_open") == 2
    by_hand = put_exports("# By hand\n", REPORTS[1:])
    assert by_hand.startswith("# By hand\n\n## Exports\n") and put_exports(by_hand, REPORTS[1:]) == by_hand


def test_what_was_not_compared_is_not_shown():
    """A language model has answers without scores, a forecaster no choices; without targets, a score says little."""
    greedy = {key: SEARCHED["searches"]["greedy"][key] for key in ("equal", "rows_per_second")}
    choices = {"choices": {"compared": 0, "different": 0}, "unit": "standard deviations"}
    own = copy.deepcopy(SEARCHED)
    own["searches"]["beam_4"]["references"] = False
    reports = [COMPUTED | {"searches": {"greedy": greedy}}, COMPUTED | {"outputs": COMPUTED["outputs"] | choices}, own]
    shown = put_exports("", [Report.model_validate(report) for report in reports])
    assert "| 500 | 897 | 499 of 500 |" in shown and "| 500 | - | - | 1.5e-06 (standard deviations)" in shown
    assert "+0.21), against its own answers |" in shown and shown.count("|---") == 16


@pytest.mark.parametrize("hostile", [*HOSTILE, "<!-- end of exports -->", "\n<!-- end of exports -->\n"])
def test_a_report_of_anybody_is_shown_and_nothing_else(hostile):
    outputs = COMPUTED["outputs"] | {"unit": hostile}
    names = {"export": hostile, "quantization": hostile}
    reports = [Report.model_validate(report) for report in (SEARCHED | names, COMPUTED | names | {"outputs": outputs})]
    usual, shown = put_exports("# x\n", REPORTS), put_exports("# x\n", reports)
    blocks = render_markdown(shown)
    assert [block.type for block in blocks] == [block.type for block in render_markdown(usual)]
    inner = {token.type for block in blocks for token in block.children or []}
    assert inner <= {"text", "code_inline", "softbreak", "text_special"}
    assert put_exports(shown, REPORTS) == usual


@pytest.fixture
def write_report(tmp_path):
    """Writes the report of an export beside weights, and gives its path."""
    (tmp_path / "model.safetensors").write_bytes(b"weights")

    def write(export: str, content: bytes | None = None, **changes):
        path = tmp_path / "exports" / export / "equivalence.json"
        path.parent.mkdir(parents=True)
        weights = describe(tmp_path, [tmp_path / "model.safetensors"])
        path.write_bytes(content or json.dumps(SEARCHED | {"export": export, "weights": weights} | changes).encode())
        return path

    return write


def test_exports_of_other_weights_are_left_out(write_report, tmp_path, caplog):
    """A card shows those of the model that is published."""
    caplog.set_level(logging.WARNING, "pipeline")
    assert read_reports(tmp_path) == []
    write_report("ctranslate2")
    write_report("onnx", weights={"model.safetensors": {"size": 7, "sha256": "0"}})
    assert [report.export for report in read_reports(tmp_path)] == ["ctranslate2"]
    assert "onnx/equivalence.json is of other weights; export again to have it in the card" in caplog.text


@pytest.mark.parametrize(
    "content",
    [b"{", b"\xff", b"[1]", b'{"export": 1}', b"[" * 100_000, json.dumps(SEARCHED | {"bytes": {"model": 0}}).encode()],
)
def test_a_report_that_cannot_be_read_is_named(write_report, tmp_path, content):
    path = write_report("onnx", content)
    with pytest.raises(ConfigError, match=rf"{path}: .*; export again, or remove it"):
        read_reports(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, "many", None, [1]])
def test_numbers_are_numbers(write_report, tmp_path, value):
    report = copy.deepcopy(SEARCHED)
    report["searches"]["greedy"]["equal"] = value
    path = write_report("onnx", json.dumps(report).encode())
    with pytest.raises(ConfigError, match=rf"{path}: "):
        read_reports(tmp_path)
