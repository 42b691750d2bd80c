import copy

import numpy as np
import pytest

from pipeline.config import AugmentationConfig
from pipeline.data.augmentation import READ_LABELS, Augmentation, merge, merge_ranks
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


@pytest.mark.parametrize("key", ["bpe_dropout", "bpe_dropout_target"])
def test_bpe_dropout_needs_bpe(words, key):
    with pytest.raises(ConfigError, match=rf"augmentation\.{key}: the tokenizer is not a BPE"):
        Augmentation(AugmentationConfig(**{key: 0.1}), words, 100)


def test_bpe_dropout_of_the_target(bpe):
    """Other tokens of the same text, behind what is told and before `</s>`; never more than is allowed."""
    labels = [250, *bpe("low newest")["input_ids"]]
    feature = {"sample_id": 7, "source": "low", "target": ["low newest", "new"], "input_ids": [9, 2], "labels": labels}

    def change_labels(seed: int, max_length: int, **keys) -> list[int]:
        augmentation = Augmentation(AugmentationConfig(bpe_dropout_target=0.5), bpe, 100, max_length)
        changed = augmentation({**feature, **keys}, np.random.default_rng(seed))
        assert changed["input_ids"] == [9, 2] and {*changed} == {*feature, *keys}
        return changed["labels"]

    others = [change_labels(seed, 100) for seed in range(10)]
    assert len({tuple(other) for other in others}) > 4
    for other in others:
        assert other[0] == 250 and other[-1] == bpe.eos_token_id and bpe.decode(other[1:-1]) == "low newest"
    longest = max(others, key=len)
    seed, length = others.index(longest), len(longest)
    assert length > len(labels) and change_labels(seed, length) == longest
    assert change_labels(seed, length - 1) == labels
    assert change_labels(seed, length, decoder_start=[1, 251]) == labels  # of which one is told in front of the target


def test_word_dropout(bpe):
    """All tokens of a word or none, and never what stands around the text."""
    text = "low lowest newest é北"
    ids, unknown = bpe(text)["input_ids"], bpe.unk_token_id
    pieces = [len(bpe.tokenize(word)) for word in ("low", " lowest", " newest", " é北")]
    assert sum(pieces) + 1 == len(ids) and max(pieces) > 1
    feature = make_feature(bpe, text) | {"input_ids": [250, *ids]}
    augmentation = Augmentation(AugmentationConfig(word_dropout=0.3), bpe, 100)
    num_dropped = 0
    for seed in range(200):
        changed = augmentation(feature, np.random.default_rng(seed))
        assert {**changed, "input_ids": None} == {**feature, "input_ids": None}
        first, *tokens, last = changed["input_ids"]
        assert (first, last) == (250, bpe.eos_token_id)
        for count in pieces:
            word, tokens = tokens[:count], tokens[count:]
            original = ids[len(ids) - 1 - len(tokens) - count :][:count]
            assert word in (original, [unknown] * count)
            num_dropped += word != original
    assert 0.25 < num_dropped / 800 < 0.35
    assert augmentation(feature, np.random.default_rng(3)) == augmentation(feature, np.random.default_rng(3))


def test_word_dropout_of_what_the_decoder_reads(bpe):
    """The labels are those that BPE-dropout gave, and the decoder reads them with some words unknown."""
    labels = [*bpe("low newest widest")["input_ids"], 250]
    feature = make_feature(bpe) | {"target": "low newest widest", "labels": labels}
    config = AugmentationConfig(word_dropout_target=0.4, bpe_dropout_target=0.3)
    num_dropped = 0
    for seed in range(50):
        changed = Augmentation(config, bpe, 100, 100)(feature, np.random.default_rng(seed))
        assert changed["input_ids"] == feature["input_ids"]
        assert bpe.decode(changed["labels"][:-1], skip_special_tokens=True) == "low newest widest"
        read = changed[READ_LABELS]
        assert read[-2:] == [bpe.eos_token_id, 250] and len(read) == len(changed["labels"])
        assert all(token in (label, bpe.unk_token_id) for token, label in zip(read, changed["labels"], strict=True))
        num_dropped += bpe.unk_token_id in read
    assert 20 < num_dropped < 50


def test_other_noise_is_drawn_as_without_word_dropout_of_the_target(bpe):
    """It comes last, so a run with the noise of an earlier version has the same sources."""
    keys = {"bpe_dropout": 0.2, "swap": 0.2, "delete": 0.1, "insert": 0.1}
    feature = make_feature(bpe) | {"target": "low newest", "labels": bpe("low newest")["input_ids"]}
    sources = [
        Augmentation(AugmentationConfig(**keys, **more), bpe, 100, 100)(feature, np.random.default_rng(5))["input_ids"]
        for more in ({}, {"word_dropout_target": 0.5, "bpe_dropout_target": 0.5})
    ]
    assert sources[0] == sources[1] != feature["input_ids"]


def test_word_dropout_without_a_fast_tokenizer(words):
    """Each token is a word."""
    augmentation = Augmentation(AugmentationConfig(word_dropout=0.5), words, 100)
    augmentation.backend = None
    ids = make_feature(words)["input_ids"]
    changed = augmentation(make_feature(words), np.random.default_rng(0))["input_ids"]
    assert changed[-1] == words.eos_token_id and {words.unk_token_id} < {*changed} < {*ids, words.unk_token_id}


@pytest.mark.parametrize("key", ["word_dropout", "word_dropout_target"])
def test_word_dropout_needs_an_unknown_token(words, key):
    tokenizer = copy.deepcopy(words)
    tokenizer.unk_token = None
    with pytest.raises(ConfigError, match=rf"augmentation\.{key}: the tokenizer has no unknown token"):
        Augmentation(AugmentationConfig(**{key: 0.1}), tokenizer, 100)


def test_word_dropout_needs_words(words):
    tokenizer = copy.deepcopy(words)
    tokenizer.backend_tokenizer.pre_tokenizer = None
    with pytest.raises(ConfigError, match=r"augmentation\.word_dropout: the tokenizer takes a whole text as one word"):
        Augmentation(AugmentationConfig(word_dropout=0.1), tokenizer, 100)
