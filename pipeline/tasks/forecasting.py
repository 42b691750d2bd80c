"""Past values of several series to their future values; the rows of a split are the steps of time, in order.

Shapes: B windows, L steps of the past, H steps of the future, C series.
"""

import logging
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from pydantic import Field, field_validator
from torch import Tensor
from transformers import AutoModel, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from pipeline import plots
from pipeline.config import Config, DataConfig, Section, check_distinct
from pipeline.data.rows import HOW_TO_FIX, PLACE, PROBLEM, BadRow, Columns, Feature, name_places, shorten
from pipeline.data.splits import Rows
from pipeline.data_config import ColumnNames, write_split
from pipeline.errors import ConfigError, DataError
from pipeline.tasks.base import Batch, Better, CardText, Task

DRAWN = 4  # windows, spread over the split
FORECASTS_FILE = "forecasts.png"
TIME = "(time)"  # the agreed column of `forecasting.time`, beside those that have the names of the series
MONTH = re.compile(r"[0-9]{4}-[0-9]{2}")
CERTAINTY = 2.0  # standard errors
MIN_BLOCKS = 8  # of validation windows, from which a standard error is estimated

logger = logging.getLogger(__name__)


class ForecastingSettings(Section):
    series: list[str] = Field(
        min_length=1,
        description="columns of the series to forecast, such as [OT]",
        json_schema_extra={"formerly": "data.series"},
    )
    time: str | None = Field(
        None,
        description="column of numbers or ISO dates by which the rows of a split must be in order, each later than the "
        "one before; null: the order of the rows is trusted",
    )

    _check_series = field_validator("series")(check_distinct)


@dataclass
class Forecasting(Task):
    """Every window of `context_length + prediction_length` steps is a sample, one beginning at each step.

    Values are in the units of the data; the model standardises them by mean and standard deviation of the training
    split. Errors are given in both.
    """

    card: ClassVar[CardText] = CardText(
        pipeline_tag="time-series-forecasting",
        model="A Transformer encoder over patches of time series",
        data="the series {series}",
        use="""import torch
from transformers import AutoModel

model = AutoModel.from_pretrained("{name}"{trust})
past_values = torch.rand(1, model.config.context_length, len(model.config.series))  # your series, in their own units
print(model(past_values=past_values).prediction_outputs)  # the next steps, in the same units""",
    )
    pictures: ClassVar[dict[str, str]] = {FORECASTS_FILE: "Forecasts of some windows"}
    drawn_score: ClassVar[str | None] = "mae"
    context_length: int
    prediction_length: int
    series: list[str]
    stds: list[float]
    tokenizer: None = None

    settings: ClassVar[type[Section]] = ForecastingSettings
    auto_class: ClassVar[Any] = AutoModel
    text_columns: ClassVar[tuple[str, ...]] = ()
    scores: ClassVar[dict[str, Better]] = dict.fromkeys(
        ("loss", "mse", "mae", "mse_original", "mae_original", "repeat_last_mse", "repeat_last_mae"), "lower"
    )
    accuracy: ClassVar[str | None] = None
    has_metrics: ClassVar[bool] = False

    @classmethod
    def from_model(cls, tokenizer: None, model: PreTrainedConfig, config: Config | None = None) -> "Forecasting":
        return cls(model.context_length, model.prediction_length, model.series, model.stds)

    @property
    def required_columns(self) -> tuple[str, ...]:
        return tuple(self.series)

    @classmethod
    def columns(cls, config: Config) -> ColumnNames:
        settings = config.task_settings
        return {name: name for name in settings.series} | ({} if settings.time is None else {TIME: settings.time})

    @classmethod
    def model_settings(cls, config: Config, rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
        """Return the names of the series, and their means and standard deviations in the training rows.

        Raises:
            ConfigError: for a stream, whose steps would have no known order.
            DataError: for a series that never changes; for a value that is not finite, unless bad rows are skipped.
        """
        series = config.task_settings.series
        if config.data.streaming:
            raise ConfigError("data.streaming: windows of series are cut from a whole split; set it to false")
        steps = list(rows)
        values = _values(steps, series)
        if config.data.on_bad_row == "error" and (problem := _find_gap(steps, values, series)):
            raise DataError(f"{problem}; {HOW_TO_FIX}")
        means, stds = [], []
        for name, column in zip(series, values.T, strict=True):
            finite = column[np.isfinite(column)]
            if not finite.size or finite.min() == finite.max():
                raise DataError(
                    f"forecasting.series: {name} is the same in all rows of {write_split(config.data.train)}; "
                    "leave it out"
                )
            with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                mean, std = float(finite.mean()), float(finite.std())
            if not math.isfinite(mean) or not 0 < std < math.inf:
                raise DataError(
                    f"forecasting.series: {name} has values from {finite.min():.3g} to {finite.max():.3g}, too large "
                    "or too near one another to be standardised; take another unit"
                )
            means.append(mean)
            stds.append(std)
        return {"series": series, "means": means, "stds": stds}

    def to_samples(self, rows: Rows) -> Rows:
        """Cut the rows into windows, each of which knows the row with which it begins.

        Raises:
            DataError: for fewer rows than a window has, a value that is not a number, or rows that are not in the
                order of `forecasting.time`.
        """
        steps = [*rows]
        check_order(steps)
        values = _values(steps, self.series)
        length = self.context_length + self.prediction_length
        if len(values) < length:
            raise DataError(
                f"data: a split has {len(values)} rows, where one window needs {length}: model.context_length="
                f"{self.context_length} and model.prediction_length={self.prediction_length}; shorten them, or let the "
                "split begin earlier"
            )

        def cut(batch: dict[str, list]) -> dict[str, list]:
            return {"values": [values[start : start + length] for start in batch["start"]], "start": batch["start"]}

        return Dataset.from_dict({"start": range(len(values) - length + 1)}).with_transform(cut)

    def encode(self, columns: Columns, limits: DataConfig | None = None) -> list[Feature | BadRow]:
        windows = zip(name_places(columns), columns["row"], columns["start"], columns["values"], strict=True)
        return [self._encode_window(*window) for window in windows]

    def _encode_window(self, place: str, row: int, start: int, values: np.ndarray) -> Feature | BadRow:
        values = np.asarray(values, dtype=np.float64)  # (L + H, C)
        if not np.isfinite(values).all():
            step, series = np.argwhere(~np.isfinite(values))[0]
            name, value = self.series[series], values[step, series]
            return BadRow(place, f"{name} is {value} in row {start + step} of the split, which is not finite")
        past, future = values[: self.context_length], values[self.context_length :]
        return {"sample_id": row, "source": "", "target": "", "past_values": past, "future_values": future}

    def lengths(self, feature: Feature) -> tuple[int, ...]:
        return (self.context_length,)

    def collate(self, features: list[Feature]) -> Batch:
        """Stack `past_values` (B, L, C) and `future_values` (B, H, C), in float64: the model standardises them."""
        return {
            name: torch.from_numpy(np.stack([feature[name] for feature in features]))
            for name in ("past_values", "future_values")
        }

    def label_batch(self, batch: Batch) -> Batch:
        return {"labels": torch.zeros_like(batch["future_values"])}

    def count_items(self, outputs: ModelOutput, batch: Batch) -> tuple[Tensor, Tensor]:
        future = batch["future_values"]
        return torch.full_like(future[:, 0, 0], future[0].numel()), torch.zeros_like(future[:, 0, 0])

    def score(self, model: PreTrainedModel, batch: Batch) -> list[dict[str, float]]:
        outputs = model(**batch)
        stds = torch.tensor(self.stds, device=model.device)
        future = batch["future_values"]
        errors = outputs.prediction_outputs - future
        repeated = (batch["past_values"][:, -1:] - future) / stds
        values = {
            "loss": outputs.losses,
            "mse": (errors / stds).square(),
            "mae": (errors / stds).abs(),
            "mse_original": errors.square(),
            "mae_original": errors.abs(),
            "repeat_last_mse": repeated.square(),
            "repeat_last_mae": repeated.abs(),
        }
        sums = {name: value.double().sum((1, 2)).tolist() for name, value in values.items()}
        return [
            {"items": future[0].numel(), **{name: sums[name][number] for name in sums}} for number in range(len(future))
        ]

    def predict(self, model: PreTrainedModel, batch: Batch, generation: GenerationConfig | None) -> list[Any]:
        return list(model(past_values=batch["past_values"]).prediction_outputs.cpu().numpy())

    def settle(self, model: PreTrainedModel, sums: list[dict[str, Any]]) -> bool:
        """Let a model of `level: last` repeat the last value, unless validation shows that its changes are better.

        What is learned of a random walk is noise, which may help on validation by luck. So the simpler forecast is
        taken where the other is not better by `CERTAINTY` standard errors (Breiman et al. 1984, section 3.4.3, ask for
        one). Windows that overlap share their errors, so errors count by blocks of windows that hardly do. Errors that
        are not finite say that the model diverged, and are left for the run to report.
        """
        gains = np.array([window["repeat_last_mse"] - window["mse"] for window in sums])
        if model.config.level != "last" or len(gains) < 2 or not np.isfinite(gains).all():
            return False
        num_blocks = min(len(gains), max(MIN_BLOCKS, len(gains) // (2 * self.prediction_length)))
        blocks = np.array([block.mean() for block in np.array_split(gains, num_blocks)])
        mean, error = blocks.mean(), blocks.std(ddof=1) / math.sqrt(num_blocks)
        if mean > CERTAINTY * error:
            return False
        logger.warning(
            "warning: the model will repeat the last value: on validation its own forecast lowers the MSE by only "
            "%.2g +- %.2g",
            *(mean / sums[0]["items"], error / sums[0]["items"]),
        )
        model.forget_change()
        return True

    @classmethod
    def remarks(cls, scores: dict[str, dict[str, Any]]) -> list[str]:
        """Say where repeating the last value of the past forecasts better than the model, or is what it does."""
        held_out = [values for values in scores.values() if "mse" in values]
        if held_out and all(values["mse"] == values["repeat_last_mse"] for values in held_out):
            return ["This model repeats the last known value: validation did not show that it can forecast better."]
        return [
            f"On {split}, this model is worse than repeating the last known value: its {error.upper()} is "
            f"{values[error]:.4f}, that of repeating is {values[f'repeat_last_{error}']:.4f}."
            for split, values in scores.items()
            for error in ("mse", "mae")
            # `not <=` rather than `>`, so that an error of NaN is worse as well.
            if error in values and not values[error] <= values[f"repeat_last_{error}"]
        ]

    @torch.no_grad()
    def draw(self, model: PreTrainedModel, features: list[Feature], folder: Path) -> None:
        """Draw `forecasts.png`: some windows of every series, with history."""
        if not features:
            return
        places = np.linspace(0, len(features) - 1, min(DRAWN, len(features))).astype(int)
        drawn_features = [features[place] for place in places]
        batch = {name: tensor.to(model.device) for name, tensor in self.collate(drawn_features).items()}
        plots.draw_forecasts(
            self.series,
            [feature["past_values"] for feature in drawn_features],
            [feature["future_values"] for feature in drawn_features],
            self.predict(model, batch, None),
            folder / FORECASTS_FILE,
        )


def _values(rows: list[dict[str, Any]], series: list[str]) -> np.ndarray:
    """Return the values of all rows, (N, C); those of null, empty and unreadable ones are NaN.

    Raises:
        DataError: for a value that is not a number.
    """
    values = np.empty((len(rows), len(series)))
    for number, name in enumerate(series):
        for step, row in enumerate(rows):
            try:
                values[step, number] = to_number(row[name])
            except (TypeError, ValueError, OverflowError) as error:
                raise DataError(
                    f"forecasting.series: {name} is {shorten(row[name])} in row {step} of the split, not a number"
                    f"{_name_place(rows, step)}"
                ) from error
    return values


def to_number(value: Any) -> float:
    """Read a value of a series; null and empty ones are NaN.

    Raises:
        TypeError, ValueError, OverflowError: for a value that is not a number.
    """
    if isinstance(value, str):
        text = value.strip()
        if "_" in text:  # Python takes 1_000 for a number
            raise ValueError(text)
        return float(text or "nan")
    return math.nan if value is None else float(value)


def _find_gap(rows: list[dict[str, Any]], values: np.ndarray, series: list[str]) -> str | None:
    """Name the first value that is not finite, and its row; None where there is none."""
    gaps = np.argwhere(~np.isfinite(values))
    if not len(gaps):
        return None
    step, number = gaps[0]
    reason = f"{series[number]} is {values[step, number]} in row {step} of the split, which is not finite"
    return (rows[step].get(PROBLEM) or reason) + _name_place(rows, step)


def _name_place(rows: list[dict[str, Any]], step: int) -> str:
    """Name file and line of a row behind a message, where they are known."""
    return f" ({rows[step][PLACE]})" if PLACE in rows[step] else ""


def check_order(rows: list[dict[str, Any]]) -> None:
    """Raise DataError where a row is not later than the one before it, if `forecasting.time` names a column."""
    before: Any = None
    for step, row in enumerate(rows):
        if TIME not in row:
            return
        if row.get(PROBLEM):
            continue  # a bad row, which has no time
        given, place = f"forecasting.time: {shorten(row[TIME])} in row {step} of the split", _name_place(rows, step)
        try:
            now = _to_moment(row[TIME])
            is_later = before is None or now > before
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(
                f"{given} is not a number or an ISO date (2024-01-31 13:00) like those before it{place}"
            ) from error
        if not is_later:
            raise DataError(
                f"{given} is not later than {shorten(rows[step - 1][TIME])} before it{place}; sort the rows, and "
                "remove those that are there twice"
            )
        before = now


def _to_moment(value: Any) -> Any:
    """Return a number or a date of a kind that can be compared; a date without a time zone is taken for UTC."""
    if isinstance(value, str):
        text = value.strip()
        try:
            value = float(text) if "." in text or "e" in text.lower() else int(text)
        except ValueError:
            value = datetime.fromisoformat(f"{text}-01" if MONTH.fullmatch(text) else text)
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    if not math.isfinite(value):
        raise ValueError(value)
    return value
