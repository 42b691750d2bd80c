"""A whole split as features, for evaluation."""

import logging

from pipeline.config import Config
from pipeline.data.hub_reading import iterate_rows, retry_seconds
from pipeline.data.rows import HOW_TO_FIX, separate
from pipeline.data.splits import Rows, open_split
from pipeline.errors import DataError
from pipeline.tasks.base import Feature, Task

logger = logging.getLogger(__name__)


def encode_rows(config: Config, task: Task, rows: Rows | None, split: str | None) -> list[Feature]:
    """Encode all rows of a split, none left out for its length; no rows where there is no split.

    Raises:
        DataError: for a bad row, unless they are to be skipped.
    """
    if rows is None:
        return []
    samples = list(iterate_rows(task.to_samples(rows), retry_seconds(config.data)))
    columns = {name: [row[name] for row in samples] for name in samples[0]} | {"row": list(range(len(samples)))}
    features, bad = separate(task.encode(columns))
    if bad and config.data.on_bad_row == "error":
        raise DataError(f"data: {split}: {bad[0]}; {HOW_TO_FIX}")
    if bad:
        logger.warning("%s: %d bad rows are left out, such as %s", split, len(bad), bad[0])
    return features


def encode_split(config: Config, task: Task, split: str | None) -> list[Feature]:
    """Open a split, and encode it as evaluation wants it; no split has no features."""
    if split is None:
        return []
    rows = open_split(config.data, split, task.columns(config))
    return task.to_evaluation(encode_rows(config, task, rows, split))
