"""The one loop over batches outside training: for evaluation and for generation."""

import math
from collections.abc import Iterator, Sequence

from transformers import PreTrainedModel

from pipeline.progress import progress_bar
from pipeline.tasks.base import Batch, Feature, Task


def batches_by_length(
    model: PreTrainedModel,
    task: Task,
    features: Sequence[Feature],
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    description: str | None = None,
) -> Iterator[tuple[list[Feature], Batch]]:
    """Yield one rank's share of the features, collated, on the model's device.

    The model is in evaluation mode meanwhile. Rows of like length share a batch, the longest first, and the batches go
    to the ranks in turn. A rank left without one in the last turn repeats the first batch, as a sharded model needs all
    ranks in every forward pass: so a sample can come twice, and what is gathered must be kept by `sample_id`.

    Args:
        description: of a progress bar; None shows none.

    Yields:
        The features of a batch, and the batch.
    """
    ordered = sorted(features, key=task.lengths, reverse=True)
    batches = [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
    was_training = model.training
    model.eval()
    try:
        with progress_bar(description, "rows", total=len(ordered)) as bar:
            for turn in range(math.ceil(len(batches) / world_size)):
                index = turn * world_size + rank
                samples = batches[index if index < len(batches) else 0]
                yield samples, {name: tensor.to(model.device) for name, tensor in task.collate(samples).items()}
                bar.update(min(batch_size * world_size, len(ordered) - bar.n))
    finally:
        model.train(was_training)
