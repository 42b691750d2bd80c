"""Add noise to the tokens of a training row's source: swapped, deleted and inserted tokens, and BPE-dropout.

Noise on texts, which comes before they are encoded, is in text_noise.py.
"""

import json
from itertools import pairwise
from typing import Any

import numpy as np
from tokenizers import models
from transformers import PreTrainedTokenizerBase

from pipeline.config import AugmentationConfig
from pipeline.data.rows import Feature
from pipeline.errors import ConfigError


class Augmentation:
    """Change the `input_ids` of a feature; its labels stay, and so does every special token.

    In this order, with the probabilities of the config:

        bpe_dropout    l o w e s t </s>  the text is segmented anew, each merge being left out at random
                                         (Provilkov et al. 2020, https://aclanthology.org/2020.acl-main.170)
        swap           a b c d </s>  ->  b a c d </s>      a token and the next one
        delete         b a c d </s>  ->  b c d </s>        at least one token of the text stays
        insert         b c d </s>    ->  b c x d </s>      a random token behind another

    What would grow past `max_length` stays as it was.

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
                raise ConfigError("augmentation.bpe_dropout: the tokenizer is not a BPE; use tokenizer.kind=bpe, or 0")
            self.ranks = merge_ranks(tokenizer)

    def __call__(self, feature: Feature, generator: np.random.Generator) -> Feature:
        ids = self._segment(feature, generator) if self.config.bpe_dropout else feature["input_ids"]
        places = [place for place, token in enumerate(ids) if token not in self.special]
        if not places:
            return feature
        first, last = places[0], places[-1] + 1
        text = self._swap(list(ids[first:last]), generator)
        text = self._insert(self._delete(text, generator), generator)
        changed = [*ids[:first], *text, *ids[last:]]
        return feature | {"input_ids": changed} if len(changed) <= self.max_length else feature

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

    def _segment(self, feature: Feature, generator: np.random.Generator) -> list[int]:
        """Encode a source whose words are merged anew, each merge being left out with the probability of the config.

        What stands around the text, such as a language, stays.

        The dropout of `tokenizers` itself draws from a generator that cannot be seeded, so a run could not be repeated:
        https://github.com/huggingface/tokenizers/blob/v0.22.1/tokenizers/src/models/bpe/word.rs
        """
        encoding = self.backend.encode(feature["source"], add_special_tokens=False)
        whole, length = feature["input_ids"], len(encoding.ids)
        places = range(len(whole) - length + 1)
        before = next((place for place in places if whole[place : place + length] == encoding.ids), 0)
        ids: list[int] = whole[:before]
        words = encoding.word_ids
        place = 0
        while place < len(words):
            end = place + 1  # of the word that begins at `place`
            while words[place] is not None and end < len(words) and words[end] == words[place]:
                end += 1
            pieces = [*"".join(encoding.tokens[place:end])]
            if words[place] is None or not all(piece in self.ids for piece in pieces):
                ids += encoding.ids[place:end]  # special tokens, and bytes that are not characters
            else:
                ids += [self.ids[piece] for piece in merge(pieces, self.ranks, self.config.bpe_dropout, generator)]
            place = end
        return ids + whole[before + length :]


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
