"""The rows on which a model and its export are compared."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import Config, DataConfig, EvaluationConfig, SacrebleuConfig, make_section
from pipeline.data.hub_reading import retry_seconds
from pipeline.data.splits import Rows, open_split
from pipeline.data_config import ColumnNames, Constant, place_of, write_split
from pipeline.errors import ConfigError, DataError
from pipeline.inference.metrics import load_metrics
from pipeline.tasks.base import Feature, Task
from pipeline.tasks.encoding import encode_rows
from pipeline.tasks.sequence_to_sequence import SequenceToSequence

PLAIN_TEXT = ".txt"  # a text a line, in a column of this reader's own
FILE_SPLIT = "train"  # under which a single file is read

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ComparedRows:
    """Rows of real data, encoded.

    Attributes:
        features: of `task.encode`, as evaluation wants them.
        origin: what they are called in the proof.
        num_left_out: how many were left out, as their sources are longer than the export reads.
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
        positions: tokens of the longest source that is compared.

    Raises:
        ConfigError: where neither says what the rows are, or there are no such data; for a tokenizer of sacreBLEU that
            is not installed.
        DataError: for a row that cannot be used, or no rows at all.
    """
    sets = _open_validation(task, config) if file is None else [_open_file(task, config, file)]
    of_each = None if num_rows is None else -(-num_rows // len(sets))
    encoded = [row for opened in sets for row in _encode(task, opened, of_each)]
    encoded = [{**row, "sample_id": number} for number, row in enumerate(encoded)]
    origin = ", ".join(opened.origin for opened in sets)
    is_bounded = isinstance(task, SequenceToSequence)
    features = [row for row in encoded if not is_bounded or len(row["input_ids"]) <= positions]
    if not features:
        raise DataError(f"{origin}: all sources have more than {positions} tokens; give others: --rows FILE")
    if left_out := len(encoded) - len(features):
        logger.info("%s: %d sources have more than %d tokens, and are left out", origin, left_out, positions)
    bleu = SacrebleuConfig() if config is None else config.evaluation.sacrebleu
    load_metrics(EvaluationConfig(metrics=["sacrebleu"], sacrebleu=bleu))  # or its tokenizer is not installed
    has_references = all("target" in opened.columns for opened in sets)
    return ComparedRows(task.to_evaluation(features), origin, left_out, has_references, bleu)


@dataclass(frozen=True)
class _Opened:
    rows: Rows
    columns: ColumnNames
    data: DataConfig
    origin: str


def _encode(task: Task, opened: _Opened, num_rows: int | None) -> list[Feature]:
    data = opened.data
    return encode_rows(task, opened.rows, opened.origin, data.on_bad_row, retry_seconds(data), num_rows)


def _open_validation(task: Task, config: Config | None) -> list[_Opened]:
    if config is None:
        raise ConfigError("there is no run.yaml in the checkpoint, nor beside it; give rows to compare on: --rows FILE")
    sets = config.data.held_out("validation")
    if not sets:
        raise ConfigError("data.validation is not set in run.yaml; give rows to compare on: --rows FILE")
    opened = []
    for name, data in sets.items():
        _, split = config.data.places[place_of("validation", name)]
        columns = task.columns(config.with_data(data))
        try:
            rows, origin = open_split(data, split, columns), f"{data.path} ({name or write_split(split)})"
            opened.append(_Opened(rows, columns, data, origin))
        except (ConfigError, DataError) as error:
            raise type(error)(f"{error}; or give other rows to compare on: --rows FILE") from error
    return opened


def _open_file(task: Task, config: Config | None, file: Path) -> _Opened:
    if not file.is_file():
        raise ConfigError(f"--rows {file}: no such file")
    place: dict[str, Any] = {"path": str(file), "subset": None, "revision": None, "options": {}, "streaming": False}
    data = make_section("data", DataConfig, **place) if config is None else config.data.model_copy(update=place)
    columns: ColumnNames = {name: name for name in task.required_columns} if config is None else task.columns(config)
    if file.suffix == PLAIN_TEXT:
        constants = {name: column for name, column in columns.items() if isinstance(column, Constant)}
        columns = {"source": "text", **constants}
    try:
        return _Opened(open_split(data, FILE_SPLIT, columns), columns, data, file.name)
    except DataError as error:
        if "target" not in columns:
            raise
        problem = error
    without = {name: column for name, column in columns.items() if name != "target"}
    opened = _Opened(open_split(data, FILE_SPLIT, without), without, data, file.name)
    logger.info("--rows %s: compared without targets: %s", file, problem)
    return opened
