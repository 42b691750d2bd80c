"""The page of a comparison."""

import re

import pytest

from pipeline.inference.compare import MCNEMAR, EvaluationSet, System, compare
from pipeline.pages.comparison import (
    format_difference,
    format_p,
    format_score,
    interval_places,
    render_page,
    write_page,
)
from tests.pages.html import Page

HOSTILE = "</style></script><script>alert('x')</script><b>&amp;\"'{{ 1 }}"


def make(references, *systems, sources=None, corpora=None, metrics=("bleu", "ter")):
    named = [System(name, predictions) for name, predictions in systems]
    return compare(EvaluationSet(references, sources, corpora), named, metrics=metrics, num_resamples=20, num_trials=20)


REFERENCES = [f"the dog number {number} sleeps" for number in range(8)]
WORSE = [text.replace("dog", "cat") for text in REFERENCES]


def test_the_page_stands_alone_and_is_well_formed(tmp_path):
    result = make(REFERENCES, ("good", REFERENCES), ("bad", WORSE), sources=["a"] * 4 + ["a b"] * 4)
    write_page(result, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text("utf-8")
    page = Page(text)
    assert page.seen.count("h1") == 1 and page.seen.count("table") == 3 and "script" not in page.seen
    assert {*page.links} <= {*page.ids} and len({*page.ids}) == len(page.ids)
    assert not re.search(r"https?:|url\(|@import", text)
    assert page.texts.count("cat") == 8 and page.seen.count("mark") == 17  # each answer of both, and the legend
    assert "8 of 8 answers differ" in text
    for metric in result.metrics:
        for score in metric.scores:
            assert f"{score.mean:.2f} ± {score.ci:.2f}" in text
        assert all(format_p(p) in text for p in metric.scores[1].p_values.values())
        assert all(signature in text for signature in metric.signatures.values())


def test_no_text_is_taken_for_markup():
    references = [f"{HOSTILE} {number}" for number in range(3)]
    result = make(
        references, (HOSTILE, ["", *references[1:]]), ("b", ["x"] * 3), sources=references, corpora=[HOSTILE, "c", "c"]
    )
    page = Page(render_page(result))
    assert not {"script", "b"} & {*page.seen[: page.seen.index("table")]} and "script" not in page.seen
    assert HOSTILE in page.texts and f"{HOSTILE} 1" in page.texts and "empty" in page.texts


@pytest.mark.parametrize(
    "references, systems",
    [
        (["a"], [("one", ["a"])]),
        (["a"], [("one", [""]), ("same", [""])]),
        (REFERENCES, [("one", REFERENCES), ("two", WORSE), ("three", [*REFERENCES[:7], "x"])]),
        (["لا إله إلا", "word " * 400], [("ar", ["لا إله", "word " * 500]), ("x" * 300, ["إله", "x"])]),
    ],
    ids=["one system", "equal", "three", "right to left, and long"],
)
def test_small_and_odd_comparisons(references, systems):
    text = render_page(make(references, *systems, metrics=["bleu"]))
    Page(text)
    assert ('id="sentences"' in text) == (len(systems) > 1)
    assert ("so there is nothing to test" in text) == (systems[-1][0] == "same")
    assert ("resampling needs 6" in text) == (systems[-1][0] in ("three", "x" * 300))
    assert ('class="long" tabindex="0"' in text) == (systems[0][0] == "ar")


def test_classes_have_mcnemars_test():
    result = make(["pos", "neg"] * 4, ("a", ["pos", "neg"] * 4), ("b", ["pos"] * 8), metrics=["exact_match"])
    text = render_page(result)
    assert f"p, {MCNEMAR.replace(chr(39), '&#39;')}" in text and ">0.1250<" in text and "−0.5000" in text


def test_numbers_as_they_are_shown():
    assert (format_score(12.345, "BLEU"), format_score(0.5, "exact match")) == ("12.35", "0.5000")
    assert [format_difference(number, "BLEU") for number in (1, -1.239, -0.001)] == ["+1.00", "−1.24", "0.00"]
    assert [format_p(p) for p in (None, 0.00009, 0.0499, 1.0)] == ["–", "< 0.0001", "0.0499", "1.0000"]


def test_intervals_share_a_scale():
    result = make(REFERENCES, ("good", REFERENCES[:5] + WORSE[5:]), ("bad", WORSE), metrics=["bleu"])
    places = interval_places(result.metrics[0])
    assert min(left for left, _, _ in places) >= 0 and max(left + width for left, width, _ in places) <= 100.001
    assert places[0][2] > places[1][2]
    assert interval_places(make(["a"], ("a", ["b"])).metrics[0]) == [(0, 0, 0)]
