"""Noise on the source of training rows: swapped, deleted and inserted tokens, and BPE-dropout."""

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from tokenizers import models
from transformers import PreTrainedTokenizerBase

from pipeline.config import AugmentationConfig
from pipeline.errors import ConfigError

Feature = dict[str, Any]
Augment = Callable[[Feature, np.random.Generator], Feature]


class Augmentation:
    """Changes the `input_ids` of a feature; its labels stay, and so does every special token.

    Each neighbouring pair is swapped, each token deleted, and a random token put behind each, with the probabilities of
    the config, in this order; BPE-dropout (Provilkov et al. 2020, https://aclanthology.org/2020.acl-main.170) segments
    the text anew before. One token of the text stays at least, and what would grow past `max_length` stays as it was.

    Args:
        max_length: tokens a source may have, special ones counted.

    Raises:
        ConfigError: for BPE-dropout with a tokenizer that merges nothing.
    """

    def __init__(self, config: AugmentationConfig, tokenizer: PreTrainedTokenizerBase, max_length: int):
        self.config, self.tokenizer, self.max_length = config, tokenizer, max_length
        self.special = set(tokenizer.all_special_ids)
        self.ordinary = np.array(sorted(set(tokenizer.get_vocab().values()) - self.special))
        self.backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        self.ids = tokenizer.get_vocab()
        if config.bpe_dropout:
            if self.backend is None or not isinstance(self.backend.model, models.BPE):
                raise ConfigError("augmentation.bpe_dropout: the tokenizer is no BPE; use tokenizer.kind=bpe, or 0")
            self.ranks = merge_ranks(tokenizer)

    def __call__(self, feature: Feature, generator: np.random.Generator) -> Feature:
        ids = self._segment(feature["source"], generator) if self.config.bpe_dropout else feature["input_ids"]
        places = [place for place, each in enumerate(ids) if each not in self.special]
        if not places:
            return feature
        first, last = places[0], places[-1] + 1
        text = self._swap(list(ids[first:last]), generator)
        text = self._insert(self._delete(text, generator), generator)
        changed = [*ids[:first], *text, *ids[last:]]
        return feature | {"input_ids": changed} if len(changed) <= self.max_length else feature

    def _swap(self, ids: list[int], generator: np.random.Generator) -> list[int]:
        chosen = generator.random(len(ids)) < self.config.swap
        for place in np.flatnonzero(chosen[:-1]):
            ids[place], ids[place + 1] = ids[place + 1], ids[place]
        return ids

    def _delete(self, ids: list[int], generator: np.random.Generator) -> list[int]:
        draws = generator.random(len(ids))
        draws[np.argmax(draws)] = 1.0  # the one that stays whatever the probability
        return [each for each, draw in zip(ids, draws, strict=True) if draw >= self.config.delete]

    def _insert(self, ids: list[int], generator: np.random.Generator) -> list[int]:
        draws, others = generator.random(len(ids)), generator.choice(self.ordinary, len(ids))
        pairs = zip(ids, draws, others.tolist(), strict=True)
        return [each for own, draw, other in pairs for each in ((own, other) if draw < self.config.insert else (own,))]

    def _segment(self, text: str, generator: np.random.Generator) -> list[int]:
        """The ids of a text whose words are merged anew, each merge being passed over with the given probability.

        The dropout of `tokenizers` itself draws from a generator that cannot be seeded, so a run could not be repeated:
        https://github.com/huggingface/tokenizers/blob/v0.22.1/tokenizers/src/models/bpe/word.rs
        """
        encoding = self.backend.encode(text)
        ids: list[int] = []
        words = encoding.word_ids
        place = 0
        while place < len(words):
            end = place + 1
            while words[place] is not None and end < len(words) and words[end] == words[place]:
                end += 1
            pieces = [*"".join(encoding.tokens[place:end])]
            if words[place] is None or not all(piece in self.ids for piece in pieces):
                ids += encoding.ids[place:end]  # special tokens, and bytes that are no characters
            else:
                ids += [self.ids[piece] for piece in merge(pieces, self.ranks, self.config.bpe_dropout, generator)]
            place = end
        return ids


def merge(
    pieces: list[str], ranks: dict[tuple[str, str], int], dropout: float, generator: np.random.Generator
) -> list[str]:
    """Joins neighbours, the merge learned first before the others, until none is left that is not passed over."""
    while len(pieces) > 1:
        kept = generator.random(len(pieces) - 1) >= dropout
        found = [
            (rank, place)
            for place, pair in enumerate(pairwise(pieces))
            if kept[place] and (rank := ranks.get(pair)) is not None
        ]
        if not found:
            break
        place = min(found)[1]
        pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
    return pieces


def merge_ranks(tokenizer: PreTrainedTokenizerBase) -> dict[tuple[str, str], int]:
    """Pair -> its place among the merges, as `tokenizer.json` lists them."""
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    return {tuple(pair): rank for rank, pair in enumerate(merges)}
