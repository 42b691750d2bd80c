"""Add noise to the tokens of a training row: swapped, deleted and inserted tokens, word dropout and BPE-dropout.

Noise on texts, which comes before they are encoded, is in text_noise.py.
"""

import json
from itertools import pairwise
from typing import Any

import numpy as np
from tokenizers import models
from transformers import PreTrainedTokenizerBase

from pipeline.config import AugmentationConfig
from pipeline.data.rows import Feature, first_text
from pipeline.errors import ConfigError

READ_LABELS = "read_labels"  # of a feature: its labels as the decoder reads them, where that is something else
OF_BPE, OF_WORDS = ("bpe_dropout", "bpe_dropout_target"), ("word_dropout", "word_dropout_target")


class Augmentation:
    """Change the `input_ids` of a feature, and where asked for its labels; every special token stays.

    In this order, with the probabilities of the config:

        bpe_dropout    l o w e s t </s>  the text is segmented anew, each merge being left out at random
                                         (Provilkov et al. 2020, https://aclanthology.org/2020.acl-main.170)
        word_dropout   a b c d </s>  ->  a b <unk> d </s>  all tokens of a word, each
        swap           a b c d </s>  ->  b a c d </s>      a token and the next one
        delete         b a c d </s>  ->  b c d </s>        at least one token of the text stays
        insert         b c d </s>    ->  b c x d </s>      a random token behind another

    Of the target, whose text never changes:

        bpe_dropout_target               the labels are segmented anew; the paper does so on both sides
        word_dropout_target              words as the decoder reads them become <unk>, in `READ_LABELS`; what it is to
                                         say, the labels, stays

    Word dropout of source and of what the decoder reads is that of Sennrich et al. 2016
    (https://aclanthology.org/W16-2323, after Gal and Ghahramani 2016, https://arxiv.org/abs/1512.05287). They put zeros
    in the place of the vectors of tokens. Here it is whole words, and their place has the vector of the unknown token,
    which is learned: the "blank noising" of Xie et al. 2017 (https://arxiv.org/abs/1703.02573).

    What would grow past the longest side that is allowed stays as it was.

    Args:
        max_length: tokens a source may have, special ones counted.
        max_target_length: tokens a target may have, likewise, with what the decoder is told of its language.

    Raises:
        ConfigError: for BPE-dropout with a tokenizer that merges nothing, or word dropout with one that has no unknown
            token.
    """

    def __init__(
        self,
        config: AugmentationConfig,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        max_target_length: int = 0,
    ):
        self.config, self.tokenizer = config, tokenizer
        self.max_length, self.max_target_length = max_length, max_target_length
        self.special = set(tokenizer.all_special_ids)
        self.ordinary = np.array(sorted(set(tokenizer.get_vocab().values()) - self.special))
        self.backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        self.ids = tokenizer.get_vocab()
        for name in OF_BPE:
            if getattr(config, name):
                if self.backend is None or not isinstance(self.backend.model, models.BPE):
                    raise ConfigError(f"augmentation.{name}: the tokenizer is not a BPE; use tokenizer.kind=bpe, or 0")
                self.ranks = merge_ranks(tokenizer)
        for name in OF_WORDS:
            if getattr(config, name) and tokenizer.unk_token_id is None:
                raise ConfigError(f"augmentation.{name}: the tokenizer has no unknown token to put there; leave it out")
            if getattr(config, name) and self.backend is not None and self.backend.pre_tokenizer is None:
                raise ConfigError(f"augmentation.{name}: the tokenizer takes a whole text as one word; leave it out")

    def __call__(self, feature: Feature, generator: np.random.Generator) -> Feature:
        return self._change_target(self._change_source(feature, generator), generator)

    def _change_source(self, feature: Feature, generator: np.random.Generator) -> Feature:
        ids: list[int] = feature["input_ids"]
        words: list[int | None] = []
        if self.config.bpe_dropout or self.config.word_dropout:
            ids, words = self._segment(feature["source"], ids, self.config.bpe_dropout, generator)
        places = [place for place, token in enumerate(ids) if token not in self.special]
        if not places:
            return feature
        first, last = places[0], places[-1] + 1
        if self.config.word_dropout:
            ids = self._drop_words(ids, words, self.config.word_dropout, generator)
        text = ids[first:last]
        for change, probability in (
            (self._swap, self.config.swap),
            (self._delete, self.config.delete),
            (self._insert, self.config.insert),
        ):
            if probability:  # as draws of nothing would take a quarter of the time of a row
                text = change(text, generator)
        changed = [*ids[:first], *text, *ids[last:]]
        return feature | {"input_ids": changed} if len(changed) <= self.max_length else feature

    def _change_target(self, feature: Feature, generator: np.random.Generator) -> Feature:
        if not (self.config.bpe_dropout_target or self.config.word_dropout_target):
            return feature
        text, labels = first_text(feature["target"]), feature["labels"]
        told = max(0, len(feature.get("decoder_start", ())) - 1)
        ids, words = self._segment(text, labels, self.config.bpe_dropout_target, generator)
        if len(ids) + told > self.max_target_length:
            ids, words = self._segment(text, labels, 0.0, generator)
        feature = feature | {"labels": ids}
        if self.config.word_dropout_target:
            feature[READ_LABELS] = self._drop_words(ids, words, self.config.word_dropout_target, generator)
        return feature

    def _drop_words(
        self, ids: list[int], words: list[int | None], probability: float, generator: np.random.Generator
    ) -> list[int]:
        """Put the unknown token in the place of each token of some words.

        Args:
            words: the number of the word that each token belongs to, None for those around the text.
        """
        count = 1 + max((word for word in words if word is not None), default=-1)
        is_dropped = (generator.random(count) < probability).tolist()
        unknown = self.tokenizer.unk_token_id
        return [
            unknown if word is not None and is_dropped[word] else token for token, word in zip(ids, words, strict=True)
        ]

    def _swap(self, ids: list[int], generator: np.random.Generator) -> list[int]:
        """Swap neighbours, from left to right: a token can move on with the next swap."""
        is_swapped = generator.random(len(ids)) < self.config.swap
        for place in np.flatnonzero(is_swapped[:-1]):  # the last token has no next
            ids[place], ids[place + 1] = ids[place + 1], ids[place]
        return ids

    def _delete(self, ids: list[int], generator: np.random.Generator) -> list[int]:
        draws = generator.random(len(ids))
        draws[np.argmax(draws)] = 1.0  # the one that stays whatever the probability
        return [token for token, draw in zip(ids, draws, strict=True) if draw >= self.config.delete]

    def _insert(self, ids: list[int], generator: np.random.Generator) -> list[int]:
        draws, random_tokens = generator.random(len(ids)), generator.choice(self.ordinary, len(ids))
        longer: list[int] = []
        for token, draw, random_token in zip(ids, draws, random_tokens.tolist(), strict=True):
            longer.append(token)
            if draw < self.config.insert:
                longer.append(random_token)
        return longer

    def _segment(
        self, text: str, whole: list[int], dropout: float, generator: np.random.Generator
    ) -> tuple[list[int], list[int | None]]:
        """Encode a text whose words are merged anew, each merge being left out with the probability `dropout`.

        What stands around the text, such as a language, stays.

        The dropout of `tokenizers` itself draws from a generator that cannot be seeded, so a run could not be repeated:
        https://github.com/huggingface/tokenizers/blob/v0.22.1/tokenizers/src/models/bpe/word.rs

        Args:
            whole: the text as it was encoded, with what stands around it.

        Returns:
            The ids, and for each of them the number of its word, None for what is not of the text. Without a fast
            tokenizer, which knows words, each token is one. A text that is not in `whole` stays as it is.
        """
        if self.backend is None:
            return whole, [None if token in self.special else place for place, token in enumerate(whole)]
        encoding = self.backend.encode(text, add_special_tokens=False)
        length = len(encoding.ids)
        places = range(len(whole) - length + 1)
        before = next((place for place in places if whole[place : place + length] == encoding.ids), None)
        if before is None:
            return whole, [None] * len(whole)
        ids: list[int] = whole[:before]
        numbers: list[int | None] = [None] * before
        words = encoding.word_ids
        if not dropout:
            return whole, [*numbers, *words, *[None] * (len(whole) - before - length)]
        place = 0
        while place < len(words):
            end = place + 1  # of the word that begins at `place`
            while words[place] is not None and end < len(words) and words[end] == words[place]:
                end += 1
            pieces = [*"".join(encoding.tokens[place:end])]
            if words[place] is None or not all(piece in self.ids for piece in pieces):
                ids += encoding.ids[place:end]  # special tokens, and bytes that are not characters
            else:
                ids += [self.ids[piece] for piece in merge(pieces, self.ranks, dropout, generator)]
            numbers += [words[place]] * (len(ids) - len(numbers))
            place = end
        after = whole[before + length :]
        return ids + after, numbers + [None] * len(after)


def merge(
    pieces: list[str], ranks: dict[tuple[str, str], int], dropout: float, generator: np.random.Generator
) -> list[str]:
    """Join the pieces of a word, the merge that was learned first before the others, until none is left.

    In every round each merge is left out with the probability `dropout`; with 0, this is BPE.
    """
    while len(pieces) > 1:
        is_allowed = generator.random(len(pieces) - 1) >= dropout
        merges = [
            (rank, place)
            for place, pair in enumerate(pairwise(pieces))
            if is_allowed[place] and (rank := ranks.get(pair)) is not None
        ]
        if not merges:
            break
        _, place = min(merges)
        pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
    return pieces


def merge_ranks(tokenizer: PreTrainedTokenizerBase) -> dict[tuple[str, str], int]:
    """Return for each pair its place among the merges, as `tokenizer.json` lists them."""
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    return {tuple(pair): rank for rank, pair in enumerate(merges)}
