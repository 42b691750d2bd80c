"""A whole split as features, for evaluation."""

import logging
import math
from collections.abc import Mapping
from itertools import islice
from operator import length_hint
from typing import Literal

from pipeline.config import Config
from pipeline.data.hub_reading import iterate_rows, retry_seconds
from pipeline.data.rows import HOW_TO_FIX, BadRow, separate
from pipeline.data.splits import Rows, open_split
from pipeline.data_config import SplitNames, errors_of, write_split
from pipeline.errors import DataError
from pipeline.progress import progress_bar
from pipeline.tasks.base import Feature, Task

SET = "set"  # of a feature: the name of the held-out set that it belongs to
PART = 1000  # rows that are encoded at a time

logger = logging.getLogger(__name__)


def encode_rows(
    task: Task,
    rows: Rows,
    place: str = "rows",
    on_bad_row: str = "error",
    patience: float = 0.0,
    limit: int | None = None,
) -> list[Feature]:
    """Encode all rows of a split, none left out for its length.

    Args:
        place: what the rows are called in a message.
        on_bad_row: as `data.on_bad_row`.
        patience: seconds to try again what a stream cannot read.
        limit: of the samples that are read, the first ones; None for all.

    Raises:
        DataError: for a bad row, unless they are to be skipped, and where no rows are left.
    """
    encoded: list[Feature | BadRow] = []
    all_samples = task.to_samples(rows)
    samples = islice(iterate_rows(all_samples, patience), limit)
    total = min(length_hint(all_samples) or math.inf, math.inf if limit is None else limit)
    with progress_bar(f"encoding {place}", "rows", total) as bar:
        while part := [*islice(samples, PART)]:
            numbers = range(len(encoded), len(encoded) + len(part))
            encoded += task.encode({name: [row[name] for row in part] for name in part[0]} | {"row": [*numbers]})
            bar.update(len(part))
    if not encoded:
        raise DataError(f"{place}: there are no rows")
    features, bad = separate(encoded)
    if bad and on_bad_row == "error":
        raise DataError(f"{place}: {bad[0]}; {HOW_TO_FIX}")
    if not features:
        raise DataError(f"{place}: none of the {len(bad)} rows can be used; the first: {bad[0]}")
    if bad:
        logger.warning("%s: %d bad rows are left out, such as %s", place, len(bad), bad[0])
    return features


def encode_opened(config: Config, task: Task, rows: Rows, split: SplitNames) -> list[Feature]:
    """Encode the rows of a split of a config that is open already."""
    return encode_rows(task, rows, f"data: {write_split(split)}", config.data.on_bad_row, retry_seconds(config.data))


def encode_split(config: Config, task: Task, split: Literal["train", "validation", "test"]) -> list[Feature]:
    """Open all that a split consists of, and encode it as evaluation wants it; no split has no features."""
    features = {}
    for place, (rows, name) in config.data.places.items():
        if place.split(".")[0] in ({"train", "mix"} if split == "train" else {split}):
            here = config.with_data(rows)
            with errors_of(place):
                features[place] = encode_opened(here, task, open_split(rows, name, task.columns(here)), name)
    return join_sets(task, features, "mix" if split == "train" and config.data.mix is not None else split)


def join_sets(task: Task, places: Mapping[str, list[Feature]], split: str) -> list[Feature]:
    """Return the features of a split as evaluation wants them, those of several sets one after another.

    A feature of a set that has a name then has it as `SET`.

    Args:
        places: features as they were encoded, by `DataConfig.places`.
    """
    joined: list[Feature] = []
    for place, encoded in places.items():
        name, _, set_name = place.partition(".")
        if name != split:
            continue
        features = task.to_evaluation(encoded)
        if set_name:
            first = len(joined)
            features = [
                {**feature, "sample_id": first + number, SET: set_name} for number, feature in enumerate(features)
            ]
        joined += features
    return joined
