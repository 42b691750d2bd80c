"""The rows on which a model and its export are compared."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import Config, DataConfig, SacrebleuConfig, make_section
from pipeline.data.hub_reading import retry_seconds
from pipeline.data.splits import open_split
from pipeline.errors import ConfigError, DataError
from pipeline.tasks.base import Feature, Task
from pipeline.tasks.encoding import encode_rows

PLAIN_TEXT = ".txt"  # a text a line, in a column of this reader's own
FILE_SPLIT = "train"  # under which a single file is read

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ComparedRows:
    """Rows of real data, encoded.

    Attributes:
        features: of `task.encode`, as evaluation wants them.
        origin: what they are called in the proof.
        num_left_out: how many were left out, as they are longer than any text in training.
        has_references: whether there are targets to score predictions with.
        bleu: settings of the score.
    """

    features: list[Feature]
    origin: str
    num_left_out: int
    has_references: bool
    bleu: SacrebleuConfig


def choose_rows(
    task: Task, config: Config | None, file: Path | None, num_rows: int | None, positions: int
) -> ComparedRows:
    """Take the first rows of a file, or of the validation split of a config.

    Args:
        config: of the model's training, where it is known.
        num_rows: at most; None for all.
        positions: tokens of the longest text that is compared.

    Raises:
        ConfigError: where neither says what the rows are, or there are no such data.
        DataError: for a row that cannot be used, or no rows at all.
    """
    if file is None:
        data, split, columns = _validation(task, config)
        origin = f"{data.path} ({split})"
    else:
        data, split, columns = _file(task, config, file)
        origin = file.name
    rows = open_split(data, split, columns)
    encoded = encode_rows(task, rows, origin, data.on_bad_row, retry_seconds(data), num_rows)
    is_pair = "labels" in encoded[0] and isinstance(encoded[0]["labels"], list)
    features = [row for row in encoded if not is_pair or max(task.lengths(row)) <= positions]
    if not features:
        raise DataError(f"{origin}: all rows are longer than {positions} tokens; compare on others with --rows FILE")
    if left_out := len(encoded) - len(features):
        logger.info("%s: %d rows are longer than %d tokens, and left out", origin, left_out, positions)
    bleu = SacrebleuConfig() if config is None else config.evaluation.sacrebleu
    return ComparedRows(task.to_evaluation(features), origin, left_out, "target" in columns, bleu)


def _validation(task: Task, config: Config | None) -> tuple[DataConfig, str, dict[str, str]]:
    if config is None:
        raise ConfigError("there is no run.yaml in the checkpoint, nor beside it; give rows to compare on: --rows FILE")
    if config.data.validation is None:
        raise ConfigError("data.validation is not set in run.yaml; give rows to compare on: --rows FILE")
    columns = task.columns(config)
    try:
        open_split(config.data, config.data.validation, columns)
    except (ConfigError, DataError) as error:
        raise type(error)(f"{error}; or give other rows to compare on: --rows FILE") from error
    return config.data, config.data.validation, columns


def _file(task: Task, config: Config | None, file: Path) -> tuple[DataConfig, str, dict[str, str]]:
    if not file.is_file():
        raise ConfigError(f"--rows {file}: no such file")
    place: dict[str, Any] = {"path": str(file), "subset": None, "revision": None, "options": {}, "streaming": False}
    data = make_section("data", DataConfig, **place) if config is None else config.data.model_copy(update=place)
    columns = {name: name for name in task.required_columns} if config is None else task.columns(config)
    if file.suffix == PLAIN_TEXT:
        columns = {name: "text" for name in columns if name == "source"}
    if "target" not in columns:
        return data, FILE_SPLIT, columns
    try:
        open_split(data, FILE_SPLIT, columns)
    except DataError as error:
        logger.info("--rows %s: compared without targets: %s", file, error)
        return data, FILE_SPLIT, {name: column for name, column in columns.items() if name != "target"}
    return data, FILE_SPLIT, columns
