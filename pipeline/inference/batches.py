"""The one loop over batches outside training: for evaluation and for generation."""

import math
from collections.abc import Iterator, Sequence

from transformers import PreTrainedModel

from pipeline.memory import total_memory
from pipeline.progress import progress_bar
from pipeline.tasks.base import Batch, Feature, Task

MOST_TOKENS = 16384  # padded, of a batch: a search gains by many rows, what is only scored would rather have fewer
SHARE = 8  # of the memory of a device may go into the scores of a batch: one eighth
COPIES = 4  # of these scores, in float32: logits, their logarithms, and what comes between


def batches_by_length(
    model: PreTrainedModel,
    task: Task,
    features: Sequence[Feature],
    batch_size: int | None,
    rank: int = 0,
    world_size: int = 1,
    description: str | None = None,
) -> Iterator[tuple[list[Feature], Batch]]:
    """Yield one rank's share of the features, collated, on the model's device.

    The model is in evaluation mode meanwhile. Rows of like length share a batch, the longest first, and the batches go
    to the ranks in turn. A rank left without one in the last turn repeats the first batch, as a sharded model needs all
    ranks in every forward pass: so a sample can come twice, and what is gathered must be kept by `sample_id`.

    Args:
        batch_size: rows at a time, at most; None for as many as make `most_tokens`.
        description: of a progress bar; None shows none.

    Yields:
        The features of a batch, and the batch.
    """
    ordered = sorted(features, key=task.lengths, reverse=True)
    batches = [*_cut(task, ordered, batch_size, most_tokens(model))]
    was_training = model.training
    model.eval()
    try:
        with progress_bar(description, "rows", total=len(ordered)) as bar:
            for turn in range(math.ceil(len(batches) / world_size)):
                index = turn * world_size + rank
                samples = batches[index if index < len(batches) else 0]
                yield samples, {name: tensor.to(model.device) for name, tensor in task.collate(samples).items()}
                bar.update(sum(map(len, batches[turn * world_size : (turn + 1) * world_size])))
    finally:
        model.train(was_training)


def most_tokens(model: PreTrainedModel) -> int:
    """Return how many padded tokens a batch may have, at least one.

    Each of them has a score for every token of the vocabulary, for which there must be memory: of what the device has,
    not of what is free just now, so that every rank has the same batches, and so has a run that is resumed.
    """
    vocabulary = getattr(model.config.get_text_config(), "vocab_size", None) or 1
    return max(1, min(MOST_TOKENS, total_memory(model.device) // (SHARE * COPIES * 4 * vocabulary)))


def _cut(task: Task, ordered: list[Feature], batch_size: int | None, tokens: int) -> Iterator[list[Feature]]:
    """Cut sorted features into batches of so many rows, or of so many padded tokens on all sides together.

    A row alone may have more. The longest row is not the widest on each side, as there may be a longer target behind.
    """
    batch: list[Feature] = []
    widths: tuple[int, ...] = ()
    for feature in ordered:
        lengths = task.lengths(feature)
        wider = tuple(map(max, lengths, widths)) if batch else lengths
        is_full = len(batch) == batch_size if batch_size else (len(batch) + 1) * sum(wider) > tokens
        if batch and is_full:
            yield batch
            batch, wider = [], lengths
        batch.append(feature)
        widths = wider
    if batch:
        yield batch
