"""What the GPU check compares: made batches are those of the task, and a difference beyond the tolerance is found."""

import re

import pytest
import torch
from transformers import AutoTokenizer

from pipeline.models.modeling_seq2seq import Seq2SeqTransformerForConditionalGeneration as Model
from pipeline.tasks.sequence_to_sequence import SequenceToSequence
from scripts.check_gpu_parts import Failed, Setup, at_step, compare, make_pairs, pack, pad, write_pairs


@pytest.fixture
def setup(tmp_path) -> Setup:
    return Setup("cpu", True, None, tmp_path)


def test_made_batches_are_those_of_the_task(setup, finished_run):
    task = SequenceToSequence(AutoTokenizer.from_pretrained(finished_run))
    pairs = make_pairs(setup)
    features = [{"input_ids": source, "labels": target} for source, target in pairs]
    collated, packed = task.collate(features), task.pack(features)
    for name, tensor in pad(pairs).items():
        assert torch.equal(tensor, collated[name]), name
    assert pack(pairs).keys() == packed.keys()
    for name, tensor in pack(pairs).items():
        assert torch.equal(tensor, packed[name]), name


def test_a_difference_beyond_the_tolerance_is_found():
    expected = (2.0, torch.tensor([3.0, 4.0]))
    figures: dict = {}
    compare(figures, "same", (2.02, torch.tensor([3.0, 4.5])), expected, loss=0.011, gradient=0.11)
    assert figures == {
        "same: loss differs by": pytest.approx(0.01),
        "same: gradient differs by": pytest.approx(0.1),
    }
    with pytest.raises(Failed, match=r"other: the gradient differs by 0\.1, more than 0\.01"):
        compare(figures, "other", (2.0, torch.tensor([3.0, 4.5])), expected, loss=0.01, gradient=0.01)


def test_made_translations_hold_every_number(setup):
    words = set(re.findall(r"[0-9]+", (write_pairs(setup, 90) / "train.jsonl").read_text()))
    assert all(str(number) in words for number in range(1, 91))


def test_an_action_comes_at_its_step_only(make_model, batch):
    calls: list[int] = []
    model, forward = make_model(), Model.forward
    with at_step(2, lambda: calls.append(1)):
        model(**batch)  # no training step
        model.train()
        for expected in ([], [1], [1]):
            model(**batch)
            assert calls == expected
    assert Model.forward is forward
