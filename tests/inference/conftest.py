"""A task on a few short texts, for the tests of what is done with a model outside training."""

import pytest

from pipeline.tasks.sequence_to_sequence import SequenceToSequence
from tokenizer.training import train

TEXTS = ["a b c d e f g", "h", "a c e", "b d f h", "g f e d c b a h", "a", "b b"]


@pytest.fixture
def task() -> SequenceToSequence:
    return SequenceToSequence(train(TEXTS, "word", 40, max_length=64))


@pytest.fixture
def features(task):
    targets = [" ".join(reversed(text.split())) for text in TEXTS]
    return task.encode({"source": TEXTS, "target": targets, "row": list(range(len(TEXTS)))})
