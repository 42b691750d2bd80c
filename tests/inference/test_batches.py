"""Each sample comes at least once, the longest first, and every rank has as many batches."""

from collections import Counter
from contextlib import redirect_stderr
from itertools import pairwise

import pytest
import torch

from pipeline.inference import batches
from pipeline.inference.batches import batches_by_length
from pipeline.progress import progress_bar as bar
from tests.conftest import Terminal


def shares(model, task, features, batch_size: int | None, world_size: int) -> list[list[list[dict]]]:
    """For each rank its batches, as features."""
    return [
        [samples for samples, _ in batches_by_length(model, task, features, batch_size, rank, world_size)]
        for rank in range(world_size)
    ]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_every_sample_once_the_longest_first(make_model, task, features, batch_size):
    [batches] = shares(make_model(), task, features, batch_size, 1)
    samples = [sample for batch in batches for sample in batch]
    assert sorted(sample["sample_id"] for sample in samples) == list(range(len(features)))
    assert [task.lengths(sample) for sample in samples] == sorted(map(task.lengths, features), reverse=True)
    assert all(len(batch) == batch_size for batch in batches[:-1])


@pytest.mark.parametrize("tokens", [1, 12, 30, 10_000])
def test_a_batch_without_a_size_is_as_large_as_its_lengths_allow(make_model, task, features, tokens, monkeypatch):
    monkeypatch.setattr(batches, "MOST_TOKENS", tokens)
    [taken] = shares(make_model(), task, features, None, 1)

    def padded(rows):
        return len(rows) * sum(map(max, zip(*map(task.lengths, rows), strict=True)))

    assert [sample for batch in taken for sample in batch] == sorted(features, key=task.lengths, reverse=True)
    assert all(padded(batch) <= tokens or len(batch) == 1 for batch in taken)
    assert all(padded([*batch, after[0]]) > tokens for batch, after in pairwise(taken))


def test_its_size_follows_from_the_memory(make_model, monkeypatch):
    model = make_model()
    assert batches.most_tokens(model) == batches.MOST_TOKENS
    monkeypatch.setattr(batches, "total_memory", lambda device: 10 * model.config.vocab_size * 4 * 32)
    assert batches.most_tokens(model) == 10
    monkeypatch.setattr(batches, "total_memory", lambda device: 1)
    assert batches.most_tokens(model) == 1


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_terminal_shows_how_many_rows_are_done(make_model, task, features, ranks, monkeypatch):
    bars = []

    def kept_bar(*words, **options):
        bars.append(bar(*words, **options))
        return bars[-1]

    monkeypatch.setattr(batches, "progress_bar", kept_bar)
    with redirect_stderr(Terminal()) as terminal:
        done = [bars[0].n for _ in batches_by_length(make_model(), task, features, 3, 0, ranks, "evaluating")]
    assert "evaluating:   0%" in terminal.getvalue() and f"0/{len(features)} [" in terminal.getvalue()
    assert done == [*range(0, len(features), 3 * ranks)] and bars[0].n == len(features)
    monkeypatch.undo()
    with redirect_stderr(Terminal()) as terminal:
        shares(make_model(), task, features, 3, 1)
    assert not terminal.getvalue()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_the_batches_and_none_is_left_without(make_model, task, features, batch_size, ranks):
    taken = shares(make_model(), task, features, batch_size, ranks)
    [alone] = shares(make_model(), task, features, batch_size, 1)
    assert len({len(batches) for batches in taken}) == 1
    in_turn = [batch for turn in zip(*taken, strict=True) for batch in turn]
    assert in_turn[: len(alone)] == alone
    assert all(batch == alone[0] for batch in in_turn[len(alone) :]) and len(in_turn) - len(alone) < ranks
    counts = Counter(sample["sample_id"] for batch in in_turn for sample in batch)
    assert {*counts} == {*range(len(features))}


@pytest.mark.parametrize("is_training", [True, False])
def test_the_model_is_evaluated_and_is_then_as_it_was(make_model, task, features, is_training):
    model = make_model().train(is_training)
    for samples, batch in batches_by_length(model, task, features, 3):
        assert not model.training
        expected = task.collate(samples)
        assert {*batch} == {*expected} and all(torch.equal(batch[name], expected[name]) for name in batch)
        assert {tensor.device for tensor in batch.values()} == {model.device}
    assert model.training is is_training


def test_nothing_is_no_batch(make_model, task):
    model = make_model().train()
    assert list(batches_by_length(model, task, [], 3)) == [] and model.training
