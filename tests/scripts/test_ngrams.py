"""The n-gram models give distributions, and those that the papers define."""

import itertools
from collections import Counter

import numpy as np
import pytest

from scripts.ngrams import DISCOUNTS, Gram, KneserNey, discounts, kneser_ney_perplexity, unigram_perplexity


def zipfian(size: int, vocab_size: int, seed: int) -> list[int]:
    """Tokens of very different frequency, each leaning on the one before it."""
    generator = np.random.default_rng(seed)
    tokens = np.minimum(generator.zipf(1.3, size) - 1, vocab_size - 1)
    led = generator.random(size) < 0.5
    return np.where(led, np.roll(tokens, 1) * 3 % vocab_size, tokens).tolist()


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [0, 3, 40, 3000])
def test_every_distribution_sums_to_one(order, size):
    vocabulary = range(8)  # 6 and 7 do not occur in training
    model = KneserNey([token % 6 for token in zipfian(size, 8, 0)], 8, order)
    for length in (0, 1, 2, 4):
        for context in itertools.islice(itertools.product(vocabulary, repeat=length), 0, None, 7 if length > 2 else 1):
            probabilities = [model.probability(token, context) for token in vocabulary]
            assert min(probabilities) > 0 and sum(probabilities) == pytest.approx(1, abs=1e-12)


def test_discounts_are_those_of_chen_and_goodman():
    times = [1] * 10 + [2] * 4 + [3] * 2 + [4] * 1 + [9] * 3
    counts: Counter[Gram] = Counter({(number,): count for number, count in enumerate(times)})
    assert discounts(counts) == pytest.approx((0, 5 / 9, 7 / 6, 17 / 9))
    assert discounts(Counter({(0,): 1, (1,): 7})) == DISCOUNTS  # nothing occurs twice
    upside_down: Counter[Gram] = Counter({(number,): count for number, count in enumerate([1] + [2] * 3 + [3] * 20)})
    assert discounts(upside_down) == DISCOUNTS  # D_2 would be below 0


def test_bigrams_by_hand():
    model = KneserNey([0, 1, 0, 1, 0, 2], 4, order=2)
    # Each of 0, 1, 2 has one token before it, less 1/2; the 3/2 taken off are spread over the four.
    assert [model.probability(token, []) * 24 for token in range(4)] == pytest.approx([7, 7, 7, 3])
    assert [model.probability(token, [3]) * 24 for token in range(4)] == pytest.approx([7, 7, 7, 3])
    # Behind 0 there are 1, twice less 1, and 2, once less 1/2.
    assert [model.probability(token, [0]) * 48 for token in range(4)] == pytest.approx([7, 23, 15, 3])
    assert model.perplexity([3, 0, 1]) == pytest.approx((7 / 24 * 23 / 48) ** -0.5)


def test_lower_orders_count_the_tokens_before_and_not_the_occurrences():
    """Francisco is frequent but only behind San: behind an unseen word it is not likely (Chen and Goodman 1999)."""
    san, francisco, glasses = 0, 1, 2
    text = [san, francisco] * 50 + [token for before in range(3, 9) for token in (before, glasses)] * 2
    model = KneserNey(text, 12, order=2)
    assert model.probability(francisco, [san]) > 0.9
    assert model.probability(glasses, [11]) > 2 * model.probability(francisco, [11])
    assert KneserNey(text, 12, order=1).probability(francisco, [11]) > 0.3


def test_perplexity_of_known_sources():
    cycle = [0, 1, 2, 3, 4] * 400
    assert kneser_ney_perplexity(cycle, cycle[:500], 5) < 1.05
    assert unigram_perplexity(cycle, cycle[:501], 5) == pytest.approx(5, rel=1e-3)
    coin = np.random.default_rng(0).integers(0, 2, 6000).tolist()
    assert kneser_ney_perplexity(coin[:3000], coin[3000:], 2) == pytest.approx(2, rel=0.02)
    assert unigram_perplexity(coin[:3000], coin[3000:], 2) == pytest.approx(2, rel=0.01)


def test_the_first_token_is_only_context():
    model = KneserNey([0, 1, 2] * 20, 5)
    assert model.perplexity([0, 1]) == pytest.approx(1 / model.probability(1, [0]))
    assert unigram_perplexity([0, 1, 2] * 20, [4, 1], 5) == unigram_perplexity([0, 1, 2] * 20, [0, 1], 5)


def test_a_longer_context_helps_on_a_fifth_of_a_novel():
    train, test = zipfian(80_000, 8000, 0), zipfian(9_000, 8000, 1)
    assert 1 < kneser_ney_perplexity(train, test, 8000) < unigram_perplexity(train, test, 8000) < 8000


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([0, 5], [0, 1], 5), "ids 0 to 5 do not fit a vocabulary of 5"),
        (([0, 1], [0, -100], 5), "ids -100 to 0"),
        (([0, 1], [0], 5), "two tokens at least"),
        (([0, 1], [0, 1], 5, 0), "order=0: it must be at least 1"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        kneser_ney_perplexity(*arguments)
