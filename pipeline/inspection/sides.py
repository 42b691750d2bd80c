"""The texts of one column: how long they are, and what the tokenizer makes of them."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from pipeline.data.rows import shorten
from pipeline.inspection.rows import SHOWN_TEXT, Example, Found, Sample, around, cut
from pipeline.tasks.base import tokenize

SHOWN_VALUES = 20  # of what is most frequent
WRITTEN_TEXTS = 1000  # which are encoded and decoded
WRITTEN_LENGTH = 1000  # characters of those
MAX_PIECES = 100_000  # unknown words that are told apart


@dataclass(frozen=True)
class Lengths:
    """Lengths of texts in tokens, as training counts them.

    Attributes:
        limit: `data.max_source_length` or `max_target_length`; None where the task has none.
        over: texts that are longer.
        counts: tokens -> texts.
    """

    tokens: int
    median: int
    p95: int
    longest: int
    limit: int | None
    over: int
    counts: dict[int, int]


@dataclass(frozen=True)
class Unwritten:
    """What the tokenizer cannot read or write of the texts of a side.

    Attributes:
        tokens: that are the unknown one.
        pieces: what they stand for, the most frequent first.
        lost_characters: those that do not come back from encoding and decoding, or as others, with their number.
        changed: texts of a sample of `tried` that do not come back as they are.
    """

    tokens: int
    share: float
    pieces: dict[str, int]
    lost_characters: dict[str, int]
    tried: int
    changed: Found


class Side:
    """The texts of one column."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer, self.unknown_id = tokenizer, tokenizer.unk_token_id
        self.lengths: Counter[int] = Counter()
        self.characters: Counter[str] = Counter()
        self.pieces: Counter[str] = Counter()
        self.unknown = 0
        self.texts = Sample(WRITTEN_TEXTS)

    def add(self, number: int, place: str, text: str, ids: Sequence[int], length: int) -> None:
        self.lengths[length] += 1
        self.characters.update(text)
        self.texts.add((number, place, text[:WRITTEN_LENGTH]))
        if self.unknown_id is not None and self.unknown_id in ids:
            self.unknown += ids.count(self.unknown_id)
            self._add_pieces(text)

    def _add_pieces(self, text: str) -> None:
        if not self.tokenizer.is_fast:  # only those know what a token stands for
            return
        encoded = self.tokenizer(text, return_offsets_mapping=True, verbose=False)
        for token, (begin, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            piece = text[begin:end].strip()
            if token == self.unknown_id and (piece in self.pieces or len(self.pieces) < MAX_PIECES):
                self.pieces[piece[:SHOWN_TEXT]] += 1

    def describe_lengths(self, limit: int | None) -> Lengths:
        median, p95, longest = map(int, quantiles(self.lengths, (0.5, 0.95, 1.0)))
        over = 0 if limit is None else sum(texts for length, texts in self.lengths.items() if length > limit)
        tokens = sum(length * texts for length, texts in self.lengths.items())
        return Lengths(tokens, median, p95, longest, limit, over, dict(sorted(self.lengths.items())))

    def describe_unwritten(self, name: str) -> Unwritten:
        tokens = sum(length * texts for length, texts in self.lengths.items())
        changed = Sample()
        kept = self.texts.kept
        written = self._write([text for _, _, text in kept])
        for (number, place, text), other in zip(kept, written, strict=True):
            if text != other:
                begin = next(
                    (n for n, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other))
                )
                parts = shorten(around(text, begin)), shorten(around(other, begin))
                changed.add((number, Example(place, {name: cut(text)}, "{} comes back as {}".format(*parts))))
        return Unwritten(
            self.unknown,
            self.unknown / max(1, tokens),
            dict(self.pieces.most_common(SHOWN_VALUES)),
            self._find_lost_characters(),
            len(kept),
            changed.found(),
        )

    def _find_lost_characters(self) -> dict[str, int]:
        """Return the characters that the tokenizer knows, or seems to know, and that come back as others.

        Case and spaces do not count, which some tokenizers change on purpose. One that it does not know is a piece.
        """
        characters = [character for character in self.characters if not character.isspace()]
        lost = Counter(
            {
                character: self.characters[character]
                for character, ids, written in zip(
                    characters, tokenize(self.tokenizer, characters), self._write(characters), strict=True
                )
                if self.unknown_id not in ids and written.strip().lower() != character.lower()
            }
        )
        return dict(lost.most_common(SHOWN_VALUES))

    def _write(self, texts: list[str]) -> list[str]:
        """Encode and decode texts."""
        return self.tokenizer.batch_decode(tokenize(self.tokenizer, texts), skip_special_tokens=True) if texts else []


def quantiles(counts: Mapping[Any, int], shares: Sequence[float]) -> list[Any]:
    """Return the smallest values that so many are not above; zeros where there are none."""
    if not counts:
        return [0] * len(shares)
    values = sorted(counts)
    sums = np.cumsum([counts[value] for value in values])
    return [values[int(np.searchsorted(sums, math.ceil(share * sums[-1])))] for share in shares]
