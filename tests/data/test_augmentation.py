import numpy as np
import pytest

from pipeline.config import AugmentationConfig
from pipeline.data.augmentation import Augmentation, merge, merge_ranks
from pipeline.errors import ConfigError
from tokenizer.training import train

TEXTS = ["low lower lowest newest wider widest new wide"] * 4


@pytest.fixture(scope="module")
def words():
    return train(TEXTS, "word", 40)


@pytest.fixture(scope="module")
def bpe():
    return train(TEXTS, "bpe", 300)


def make_feature(tokenizer, text="low lower lowest newest wider widest"):
    return {"sample_id": 7, "source": text, "input_ids": tokenizer(text)["input_ids"], "labels": [5, 2]}


def change(tokenizer, seed=0, max_length=100, text="low lower lowest newest wider widest", **changes):
    augmentation = Augmentation(AugmentationConfig(**changes), tokenizer, max_length)
    return augmentation(make_feature(tokenizer, text), np.random.default_rng(seed))["input_ids"]


def test_nothing_changes_by_nothing(words):
    feature = make_feature(words)
    assert Augmentation(AugmentationConfig(), words, 100)(feature, np.random.default_rng(0)) == feature


def test_swaps_keep_the_tokens(words):
    ids = make_feature(words)["input_ids"]
    changed = [change(words, seed, swap=0.3) for seed in range(20)]
    assert all(sorted(swapped) == sorted(ids) and swapped[-1] == words.eos_token_id for swapped in changed)
    assert sum(swapped != ids for swapped in changed) > 10


def test_deletions_keep_the_order_and_one_token(words):
    ids = make_feature(words)["input_ids"]
    lengths = []
    for seed in range(200):
        changed = change(words, seed, delete=0.5)
        places = [ids.index(token) for token in changed]
        assert places == sorted(places) and changed[-1] == words.eos_token_id and len(changed) >= 2
        lengths.append(len(changed) - 1)
    assert 2.7 < np.mean(lengths) < 3.4  # of six tokens one half, and a little more as one stays always


def test_insertions_keep_the_text_and_add_ordinary_tokens(words):
    ids = make_feature(words)["input_ids"]
    added = []
    for seed in range(200):
        changed = change(words, seed, insert=0.5)
        rest = list(changed)
        place = 0
        for token in ids:  # they are all there, in their order
            place = rest.index(token, place)
            rest.pop(place)
        assert not set(rest) & set(words.all_special_ids) and changed[0] == ids[0]
        added.append(len(rest))
    assert 2.6 < np.mean(added) < 3.4


def test_a_source_stays_below_the_bound(words):
    ids = make_feature(words)["input_ids"]
    assert all(change(words, seed, max_length=len(ids), insert=0.9) == ids for seed in range(5))


def test_bpe_dropout(bpe):
    """With a probability of 0 it is the tokenizer's own segmentation; else another one of the same text."""
    text = "low lowest, é 北 newest"
    ids = bpe(text)["input_ids"]
    ranks = merge_ranks(bpe)
    generator = np.random.default_rng(0)
    assert [merge([*"lowest"], ranks, 0.0, generator), merge([*"new"], ranks, 0.0, generator)] == [
        bpe.tokenize("lowest"),
        bpe.tokenize("new"),
    ]
    others = [change(bpe, seed, text=text, bpe_dropout=0.5) for seed in range(10)]
    assert all(bpe.decode(other, skip_special_tokens=True) == text and other[-1] == ids[-1] for other in others)
    assert len({tuple(other) for other in others}) > 5 and all(len(other) >= len(ids) for other in others)
    assert change(bpe, 3, text=text, bpe_dropout=0.5) == others[3]
    assert merge([*"lowest"], ranks, 0.999, generator) == [*"lowest"]


def test_bpe_dropout_needs_bpe(words):
    with pytest.raises(ConfigError, match=r"augmentation\.bpe_dropout: the tokenizer is not a BPE"):
        Augmentation(AugmentationConfig(bpe_dropout=0.1), words, 100)
