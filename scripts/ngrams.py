"""Language models that count: what a neural one has to beat on the same tokens.

A text is one flat list of token ids. All tokens but its first are scored, each given those before it.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

Gram = tuple[int, ...]
DISCOUNTS = (0.0, 0.5, 1.0, 1.5)  # KenLM's --discount_fallback, where a corpus is too small to estimate them


def discounts(counts: Counter[Gram]) -> tuple[float, ...]:
    """Estimate what is taken off counts of 0, 1, 2, and 3 or more (Chen and Goodman 1999, section 3).

    With n_k the number of n-grams that occur k times, D_k = k - (k + 1) Y n_(k+1) / n_k where Y = n_1 / (n_1 + 2 n_2).
    """
    of_counts = Counter(counts.values())
    n1, n2, n3, n4 = (of_counts[times] for times in (1, 2, 3, 4))
    if not (n1 and n2 and n3):
        return DISCOUNTS
    y = n1 / (n1 + 2 * n2)
    estimates = (0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    # More than a count cannot be taken off it, and without a discount what is unseen would have no probability.
    is_usable = all(0 < discount <= times for times, discount in enumerate(estimates) if times)
    return estimates if is_usable else DISCOUNTS


class Level:
    """The n-grams of one order.

    Args:
        counts: of each n-gram, how often it occurs; below the highest order, how many different tokens precede it.
    """

    def __init__(self, counts: Counter[Gram]):
        self.counts, self.discounts = counts, discounts(counts)
        self.totals: Counter[Gram] = Counter()  # of each context, the counts of all that follows it
        self.reserved: dict[Gram, float] = {}  # of each context, all discounts, which go to the order below
        for gram, count in counts.items():
            context = gram[:-1]
            self.totals[context] += count
            self.reserved[context] = self.reserved.get(context, 0.0) + self.discounts[min(count, 3)]

    def probability(self, gram: Gram, lower: float) -> float:
        """Return the probability of the last token of `gram` after the others; `lower` is that of the order below."""
        context = gram[:-1]
        if context not in self.totals:
            return lower
        count = self.counts.get(gram, 0)
        seen = count - self.discounts[min(count, 3)]
        return (seen + self.reserved[context] * lower) / self.totals[context]


class KneserNey:
    """Interpolated modified Kneser-Ney smoothing (Chen and Goodman 1999, section 3,
    https://doi.org/10.1006/csla.1999.0128).

    The lowest order is interpolated with the uniform distribution, so every token has some probability.

    Args:
        tokens: the training text, ids below `vocab_size`.
        order: length of the n-grams, at least 1.

    Raises:
        ValueError: for an id outside the vocabulary, or an order below 1.
    """

    def __init__(self, tokens: Sequence[int], vocab_size: int, order: int = 3):
        if order < 1:
            raise ValueError(f"order={order}: it must be at least 1")
        text = _checked(tokens, vocab_size)
        self.vocab_size, self.order = vocab_size, order
        counts = Counter(zip(*(text[start:] for start in range(order)), strict=False))
        self.levels = [Level(counts)]
        for _ in range(order - 1):
            counts = Counter(gram[1:] for gram in counts)  # each n-gram once: the tokens that precede its rest
            self.levels.insert(0, Level(counts))

    def probability(self, token: int, context: Sequence[int]) -> float:
        """Return that of `token` after `context`, whose last `order` - 1 tokens count; fewer are a lower order's."""
        gram = (*context, token)
        result = 1 / self.vocab_size
        for length, level in enumerate(self.levels[: len(gram)], start=1):
            result = level.probability(gram[-length:], result)
        return result

    def perplexity(self, tokens: Sequence[int]) -> float:
        """Return exp of the mean negative log-probability of all `tokens` but the first.

        Raises:
            ValueError: for fewer than two tokens, or an id outside the vocabulary.
        """
        text = _checked(tokens, self.vocab_size)
        if len(text) < 2:
            raise ValueError("nothing to score: give two tokens at least, as the first is only context")
        probabilities = [
            self.probability(text[place], text[max(0, place - self.order + 1) : place]) for place in range(1, len(text))
        ]
        return float(np.exp(-np.log(probabilities).mean()))


def kneser_ney_perplexity(train: Sequence[int], test: Sequence[int], vocab_size: int, order: int = 3) -> float:
    """Return the perplexity per token on `test` of an interpolated modified Kneser-Ney model of `train`."""
    return KneserNey(train, vocab_size, order).perplexity(test)


def unigram_perplexity(train: Sequence[int], test: Sequence[int], vocab_size: int) -> float:
    """Return the perplexity per token on `test` of the frequencies in `train`, discounted as Kneser-Ney's order 1."""
    return kneser_ney_perplexity(train, test, vocab_size, order=1)


def _checked(tokens: Sequence[int], vocab_size: int) -> list[int]:
    ids = np.asarray(tokens, dtype=np.int64)
    if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
        raise ValueError(f"ids {ids.min()} to {ids.max()} do not fit a vocabulary of {vocab_size}")
    return ids.tolist()
