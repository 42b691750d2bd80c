"""Several systems on the same rows."""

import json
import subprocess
import sys
from dataclasses import asdict
from functools import partial

import pytest
from sacrebleu import BLEU, corpus_bleu
from sacrebleu.significance import PairedTest

from pipeline.config import SacrebleuConfig
from pipeline.errors import ConfigError
from pipeline.inference.compare import (
    BOOTSTRAP,
    DEFAULT_METRICS,
    FREQUENCIES,
    MCNEMAR,
    RANDOMISATION,
    EvaluationSet,
    System,
    compare,
    mcnemar,
)

SOURCES = [f"row {number} " + "word " * (number % 7) for number in range(12)]
REFERENCES = [f"the {'big ' * (number % 4)}dog number {number} sleeps" for number in range(12)]
GOOD = System("good", [text.replace("sleeps", "sleeps .") for text in REFERENCES])
BAD = System("bad", [text.replace("dog", "cat").replace("number", "") for text in REFERENCES])
quick = partial(compare, num_resamples=20, num_trials=20)


# Its command, which cannot print numbers of NumPy as JSON: https://github.com/mjpost/sacrebleu/blob/v2.6.0/sacrebleu/utils.py
COMMAND = """
import functools, json
from sacrebleu.sacrebleu import main

json.dumps = functools.partial(json.dumps, default=float)
main()
"""


def run_sacrebleu(folder, systems, references, *options):
    """Return what sacreBLEU's own command prints."""
    files = []
    for name, texts in [("references", references), *((system.name, system.predictions) for system in systems)]:
        files.append(folder / f"{name}.txt")
        files[-1].write_text("".join(f"{text}\n" for text in texts))
    words = [sys.executable, "-c", COMMAND, files[0], "-i", *files[1:], *options, "-f", "json", "-q"]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def check_equal(result, printed, test):
    """Check that the scores of a comparison are those that sacreBLEU printed."""
    for metric in result.metrics:
        for score, row in zip(metric.scores, printed, strict=True):
            if metric.title not in row:
                continue
            assert score.score == row[metric.title]["score"]
            assert score.p_values.get(test) == row[metric.title].get("p_value")
            if test == BOOTSTRAP:
                assert (score.mean, score.ci) == (row[metric.title]["mean"], row[metric.title]["ci"])


def test_the_numbers_are_those_of_sacrebleus_command(tmp_path, monkeypatch):
    monkeypatch.setenv("SACREBLEU_SEED", "7")
    result = compare(EvaluationSet(REFERENCES), [GOOD, BAD], num_resamples=40, num_trials=30)
    assert [metric.title for metric in result.metrics] == ["BLEU", "chrF2", "chrF2++", "TER"]
    options = ["-m", "bleu", "chrf", "ter", "--paired-bs", "--paired-bs-n", "40"]
    check_equal(result, run_sacrebleu(tmp_path, [GOOD, BAD], REFERENCES, *options), BOOTSTRAP)
    options = ["-m", "bleu", "chrf", "ter", "--chrf-word-order", "2", "--paired-ar", "--paired-ar-n", "30"]
    check_equal(result, run_sacrebleu(tmp_path, [GOOD, BAD], REFERENCES, *options), RANDOMISATION)
    signatures = result.metrics[0].signatures
    assert signatures[BOOTSTRAP].startswith("nrefs:1|bs:40|seed:7|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert signatures[RANDOMISATION].startswith("nrefs:1|ar:30|seed:7|")


@pytest.mark.slow
def test_so_are_they_with_its_own_number_of_samples(tmp_path, monkeypatch):
    monkeypatch.delenv("SACREBLEU_SEED", raising=False)
    systems = [GOOD, BAD, System("mixed", [*GOOD.predictions[:5], *BAD.predictions[5:]])]
    result = compare(EvaluationSet(REFERENCES), systems)
    for option, test in (("--paired-bs", BOOTSTRAP), ("--paired-ar", RANDOMISATION)):
        for order in ("0", "2"):
            metrics = ("-m", "bleu", "chrf", "ter", "--chrf-word-order", order)
            check_equal(result, run_sacrebleu(tmp_path, systems, REFERENCES, *metrics, option), test)


def test_equal_systems_are_not_tested():
    """For which sacreBLEU gives its smallest p."""
    result = quick(EvaluationSet(REFERENCES), [GOOD, System("same", GOOD.predictions)])
    for metric in result.metrics:
        assert metric.scores[1].p_values == {BOOTSTRAP: None, RANDOMISATION: None}
        assert metric.scores[0].score == metric.scores[1].score
    assert (result.pairs[0].num_different, result.pairs[0].gains, result.pairs[0].losses) == (0, [], [])
    test = PairedTest([("a", BAD.predictions), ("b", BAD.predictions)], {"BLEU": BLEU()}, [REFERENCES], "ar", 20)
    assert vars(test()[1]["BLEU"][1])["p_value"] == 1 / 21


def test_few_rows_that_differ_are_not_tested():
    """As with one row, where every shuffle gives the difference that was seen."""
    for count, is_tested in ((1, False), (5, False), (6, True)):
        other = System("other", [*BAD.predictions[:count], *GOOD.predictions[count:]])
        p_values = quick(EvaluationSet(REFERENCES), [GOOD, other], metrics=["bleu"]).metrics[0].scores[1].p_values
        assert [p is not None for p in p_values.values()] == [is_tested] * 2


@pytest.mark.parametrize(
    "references, predictions",
    [
        (["a dog"], [["a dog"], ["a cat"]]),
        (["a dog"], [[""], [""]]),
        (["a dog", "two cats"], [["", ""], ["a dog", "two cats"], ["cats", ""]]),
        (["", "a"], [["", ""], ["b", ""]]),
        ([["a dog", "the dog"], "a cat", ["x", "y", "z"]], [["the dog", "a cat", "z"], ["dog", "cat", "q"]]),
        (["a"] * 3, [["a"] * 3]),
    ],
    ids=["one row", "empty answers", "three systems", "an empty reference", "several references", "one system"],
)
def test_small_and_odd_sets(references, predictions):
    systems = [System(f"s{number}", texts) for number, texts in enumerate(predictions)]
    result = quick(EvaluationSet(references), systems, metrics=[*DEFAULT_METRICS, "exact_match"])
    json.dumps(asdict(result), allow_nan=False)
    assert [len(metric.scores) for metric in result.metrics] == [len(systems)] * 5
    assert len(result.pairs) == len(systems) - 1
    if isinstance(references[0], list):
        assert [metric.scores[0].score for metric in result.metrics[1:]] == pytest.approx([100, 100, 0, 1])
        assert "nrefs:var" in result.metrics[0].signatures[BOOTSTRAP]


def test_a_language_without_spaces():
    rows = EvaluationSet(["我爱红色的猫。", "他在看一本书。"] * 4)
    system = System("zh", ["我爱红色的狗。", "他在看两本书。"] * 4)
    result = quick(rows, [system, system], metrics=["bleu", "ter"], settings=SacrebleuConfig(tokenize="zh"))
    bleu, ter = result.metrics
    assert "tok:zh" in bleu.signatures[BOOTSTRAP] and "norm:yes" in ter.signatures[BOOTSTRAP]
    assert 40 < bleu.scores[0].score < 80 and 10 < ter.scores[0].score < 20  # one of seven letters is wrong
    assert quick(rows, [system], metrics=["ter"]).metrics[0].scores[0].score == 100  # a sentence is one word


def test_settings_of_bleu():
    rows = EvaluationSet(["A Dog sleeps in the Sun"])
    lower = System("lower", ["a dog sleeps in the sun"])
    assert quick(rows, [lower], metrics=["bleu"]).metrics[0].scores[0].score < 50
    result = quick(rows, [lower], metrics=["bleu"], settings=SacrebleuConfig(lowercase=True))
    assert result.metrics[0].scores[0].score == pytest.approx(100)


def test_groups_by_length_hold_each_row_once_and_score_like_sacrebleu():
    lengths = [1, 1, 1, 2, 3, 4, 5, 6, 7, 40]
    sources = ["word " * length for length in lengths]
    references = [f"a reference {number} of some words" for number in range(10)]
    system = System(
        "a", [text.replace("some", "few") if number % 2 else text for number, text in enumerate(references)]
    )
    result = quick(EvaluationSet(references, sources), [system], metrics=["bleu", "exact_match"])
    breakdown = result.breakdowns[0]
    assert breakdown.title == "By words in the source" and breakdown.unit == "rows"
    assert [(group.name, group.size) for group in breakdown.groups] == [("1", 3), ("2–4", 3), ("5–6", 2), ("7–40", 2)]
    expected = corpus_bleu(system.predictions[3:6], [references[3:6]]).score
    assert breakdown.groups[1].scores == {"BLEU": [expected], "exact match": [1 / 3]}
    assert quick(EvaluationSet(references), [system]).breakdowns[0].title == "By frequency in the references"


def test_groups_by_corpus():
    rows = EvaluationSet(REFERENCES, SOURCES, ["news"] * 5 + ["talks"] * 7)
    breakdown = quick(rows, [GOOD, BAD], metrics=["chrf"]).breakdowns[1]
    assert [(group.name, group.size) for group in breakdown.groups] == [("news", 5), ("talks", 7)]
    assert all(group.scores["chrF2"][0] > group.scores["chrF2"][1] for group in breakdown.groups)
    one = quick(EvaluationSet(REFERENCES, SOURCES, ["news"] * 12), [GOOD], metrics=["chrf"])
    assert "By corpus" not in [breakdown.title for breakdown in one.breakdowns]


def test_rare_words_are_those_of_the_references():
    """`rare` is once in the references, the others more often."""
    rows = EvaluationSet(["the rare dog", "the dog the dog", "the dog"])
    systems = [System("a", ["the rare rare dog", "dog dog", ""]), System("b", ["rare", "", "x"])]
    breakdown = quick(rows, systems, metrics=["bleu"]).breakdowns[-1]
    # once: rare; 2-4: the, dog, each of which is there 4 times.
    assert [(group.name, group.size) for group in breakdown.groups] == [("once", 1), ("2–4", 8)]
    # a: one found of two said and one there: 2 / 3. Of the others 4 said, 4 found, 8 there: 8 / 12.
    assert breakdown.groups[0].scores == {"F1 of words": [pytest.approx(200 / 3), 100.0]}
    assert breakdown.groups[1].scores == {"F1 of words": [pytest.approx(800 / 12), 0.0]}
    assert FREQUENCIES[0] == (1, 1)


def test_the_sentences_that_differ_most_come_first():
    references = ["a red dog sleeps", "two cats play", "it rains", "the end"]
    first = System("first", ["a red dog sleeps", "cats play", "it snows", "the end"])
    second = System("second", ["a red cat", "two cats play", "it rains", "the end"])
    pair = quick(EvaluationSet(references, ["s1", "s2", "s3", "s4"]), [first, second], metrics=["chrf"]).pairs[0]
    assert (pair.num_different, pair.num_better, pair.num_worse) == (3, 2, 1)
    assert [difference.row for difference in pair.gains] == [3, 2] and [d.row for d in pair.losses] == [1]
    loss = pair.losses[0]
    assert (loss.source, loss.references, loss.baseline.score) == ("s1", ["a red dog sleeps"], 100)
    assert [piece.text for piece in loss.other.pieces if piece.differs] == ["cat"]


def test_classes_are_right_or_wrong():
    labels = ["pos", "neg"] * 10
    good = System("good", ["pos", "neg"] * 9 + ["neg", "neg"])
    bad = System("bad", ["pos"] * 20)
    result = compare(EvaluationSet(labels, ["text"] * 20), [good, bad], metrics=["exact_match"])
    (metric,) = result.metrics
    assert [score.score for score in metric.scores] == [0.95, 0.5]
    assert metric.scores[1].p_values == {MCNEMAR: mcnemar([1] * 10 + [0], [0] * 10 + [1])}
    assert 0 < metric.scores[0].ci < 0.15 and metric.scores[0].mean == pytest.approx(0.95, abs=0.01)
    assert result.sentence_metric == "exact match" and not result.breakdowns
    assert (result.pairs[0].num_better, result.pairs[0].num_worse) == (1, 10)


def test_mcnemar():
    """Worked by hand: the tails of a fair coin."""
    assert mcnemar([1, 1], [1, 1]) is None
    assert mcnemar([1, 0], [0, 1]) == 1
    assert mcnemar([1] * 6, [0] * 6) == pytest.approx(2 / 64)
    assert mcnemar([1] * 9 + [0], [0] * 9 + [1]) == pytest.approx(2 * 11 / 1024)
    assert mcnemar([1] * 5000, [0] * 5000) == 0  # below the smallest number


def test_what_cannot_be_computed_is_said(monkeypatch):
    rows = EvaluationSet(["a"])
    with pytest.raises(ConfigError, match="--metrics: 'blue' is unknown; did you mean bleu"):
        compare(rows, [System("a", ["a"])], metrics=["blue"])
    monkeypatch.setenv("SACREBLEU_SEED", "x1")
    with pytest.raises(ConfigError, match="SACREBLEU_SEED: 'x1' is not a whole number; set one"):
        compare(rows, [System("a", ["a"])])
    monkeypatch.setenv("SACREBLEU_SEED", "None")
    assert "seed:none" in quick(rows, [System("a", ["a"])]).metrics[0].signatures[BOOTSTRAP]
