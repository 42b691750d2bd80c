"""The page and the picture of a trace."""

import json

import pytest
from PIL import Image

from pipeline.inference.attention import trace
from pipeline.pages.trace import ATTENTION_KINDS, render_page, write_picture
from pipeline.tasks.sequence_to_sequence import SequenceToSequence
from tests.conftest import colours_of
from tests.pages.html import Page
from tokenizer.training import train

HOSTILE = "</script><b>&amp;'\""


@pytest.fixture
def traced(make_model):
    """A trace in which a token looks like a tag."""
    tokenizer = train(["a b c d <script> $b"] * 2, "word", 12, max_length=16)
    model = make_model(vocab_size=len(tokenizer), decoder_layers=1)
    return trace(model, SequenceToSequence(tokenizer), "a b <script> d", "d c $b")


def test_the_page_stands_alone_and_is_well_formed(traced):
    text = render_page(traced)
    parser = Page(text)
    assert parser.seen.count("script") == 2 and parser.seen.count("h1") == 1
    assert "http:" not in text and "https:" not in text and "url(" not in text and "@import" not in text
    assert "&lt;script&gt;" in text
    numbers = json.loads(next(data for data in parser.texts if data.startswith('{"encoder"')))
    assert list(numbers) == list(ATTENTION_KINDS)
    assert [len(kind["layers"]) for kind in numbers.values()] == [2, 1, 1]
    head = numbers["decoder"]["layers"][0][3]
    assert [len(row) for row in head["weights"]] == [1, 2, 3, 4]  # the future is left out
    assert head["weights"][3] == pytest.approx(traced.decoder_attentions[0].weights[3, 3].tolist(), abs=6e-4)
    assert head["q"][2] == pytest.approx(traced.decoder_attentions[0].queries[3, 2, :4].tolist(), abs=6e-3)
    for step in traced.steps:
        assert f"<dd>{step.loss:.4f}</dd>" in text


def test_no_text_is_taken_for_markup(make_model):
    """Neither in the page, nor in the numbers that its script reads."""
    tokenizer = train([f"a {HOSTILE}"] * 2, "word", 10, max_length=16)
    model = make_model(vocab_size=len(tokenizer))
    traced = trace(model, SequenceToSequence(tokenizer), f"a {HOSTILE}", f"{HOSTILE} a")
    assert HOSTILE in traced.source.tokens
    text = render_page(traced)
    parser = Page(text)
    assert parser.seen.count("script") == 2 and "b" not in parser.seen
    assert parser.texts.count(HOSTILE) >= 2  # read back as it was
    numbers = json.loads(next(data for data in parser.texts if data.startswith('{"encoder"')))
    assert numbers["encoder"]["rows"][1] == HOSTILE


def test_the_page_of_a_long_pair_stays_small(make_model):
    tokenizer = train(["a b c d"] * 2, "word", 10, max_length=64)
    model = make_model(vocab_size=10, d_model=64, attention_heads=8, encoder_layers=3, decoder_layers=3)
    traced = trace(model, SequenceToSequence(tokenizer), "a b c d " * 7 + "a", "d c b a " * 7 + "d")
    assert len(traced.steps) == len(traced.source.ids) == 30
    assert len(render_page(traced).encode()) < 2_000_000


def test_the_picture(traced, tmp_path):
    write_picture(traced, tmp_path / "trace.png")
    colours = colours_of(Image.open(tmp_path / "trace.png").convert("RGB"))
    assert (42, 90, 156) in colours and (8, 48, 107) in colours  # a bar, and <s> that can only look at itself
