"""Past values of several series to their future values; the rows of a split are the steps of time, in order.

Shapes: B windows, L steps of the past, H steps of the future, C series.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from pipeline import plots
from pipeline.config import DataConfig
from pipeline.data.rows import BadRow, Columns, Feature, name_places
from pipeline.data.splits import Rows
from pipeline.errors import ConfigError, DataError
from pipeline.tasks.base import Batch, Task

DRAWN = 4  # windows, spread over the split


@dataclass
class Forecasting(Task):
    """Every window of `context_length + prediction_length` steps is a sample, one beginning at each step.

    Values are in the units of the data; the model standardises them by mean and standard deviation of the training
    split. Errors are given in both.
    """

    context_length: int
    prediction_length: int
    series: list[str]
    stds: list[float]
    tokenizer: None = None

    text_columns: ClassVar[tuple[str, ...]] = ()
    scores: ClassVar[tuple[str, ...]] = (
        *("loss", "mse", "mae", "mse_original", "mae_original"),
        *("repeat_last_mse", "repeat_last_mae"),
    )
    accuracy: ClassVar[str | None] = None
    has_metrics: ClassVar[bool] = False

    @classmethod
    def of(cls, tokenizer: None, model: PreTrainedConfig, data: DataConfig | None = None) -> "Forecasting":
        return cls(model.context_length, model.prediction_length, model.series, model.stds)

    @classmethod
    def columns(cls, data: DataConfig) -> dict[str, str]:
        """Raises ConfigError where no series are named."""
        if not data.series:
            raise ConfigError("data.series: name the columns to forecast, such as [OT]")
        return {name: name for name in data.series}

    @classmethod
    def sizes(cls, data: DataConfig, rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
        """Names of the series, and their means and standard deviations in these rows, those of the training split.

        Raises:
            ConfigError: for a stream, whose steps would have no known order.
            DataError: for a series that never changes.
        """
        if data.streaming:
            raise ConfigError("data.streaming: windows of series are cut from a whole split; say false")
        values = _values(list(rows), data.series or [])
        means, stds = np.nanmean(values, 0), np.nanstd(values, 0)
        for name, std in zip(data.series or [], stds, strict=True):
            if not std > 0:
                raise DataError(f"data.series: {name} is the same in all rows of {data.train}; leave it out")
        return {"series": data.series, "means": means.tolist(), "stds": stds.tolist()}

    def samples(self, rows: Rows) -> Rows:
        """The windows; each knows the row with which it begins.

        Raises:
            DataError: for fewer rows than a window has, or a value that is no number.
        """
        values = _values([*rows], self.series)
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

    def encode(self, columns: Columns) -> list[Feature | BadRow]:
        windows = zip(name_places(columns), columns["row"], columns["start"], columns["values"], strict=True)
        return [self._encode_window(*window) for window in windows]

    def _encode_window(self, place: str, row: int, start: int, values: np.ndarray) -> Feature | BadRow:
        values = np.asarray(values, dtype=np.float32)  # (L + H, C)
        if not np.isfinite(values).all():
            step, series = np.argwhere(~np.isfinite(values))[0]
            name, value = self.series[series], values[step, series]
            return BadRow(place, f"{name} is {value} in row {start + step} of the split, with no number")
        past, future = values[: self.context_length], values[self.context_length :]
        return {"sample_id": row, "source": "", "target": "", "past_values": past, "future_values": future}

    def lengths(self, feature: Feature) -> tuple[int, ...]:
        return (self.context_length,)

    def collate(self, features: list[Feature]) -> Batch:
        """`past_values` (B, L, C) and `future_values` (B, H, C)."""
        return {
            name: torch.from_numpy(np.stack([feature[name] for feature in features]))
            for name in ("past_values", "future_values")
        }

    def targets(self, batch: Batch) -> Batch:
        return {"labels": torch.zeros_like(batch["future_values"])}

    def count(self, outputs: ModelOutput, batch: Batch) -> tuple[Tensor, Tensor]:
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

    @torch.no_grad()
    def draw(self, model: PreTrainedModel, features: list[Feature], folder: Path) -> None:
        """`forecasts.png`: some windows of every series, with history."""
        if not features:
            return
        places = np.linspace(0, len(features) - 1, min(DRAWN, len(features))).astype(int)
        chosen = [features[place] for place in places]
        batch = {name: tensor.to(model.device) for name, tensor in self.collate(chosen).items()}
        plots.forecasts(
            self.series,
            [feature["past_values"] for feature in chosen],
            [feature["future_values"] for feature in chosen],
            self.predict(model, batch, None),
            folder / plots.FORECASTS_FILE,
        )


def _values(rows: list[dict[str, Any]], series: list[str]) -> np.ndarray:
    """(N, C); what is null or empty is NaN, for `encode` to name."""
    values = np.empty((len(rows), len(series)))
    for number, name in enumerate(series):
        for step, row in enumerate(rows):
            try:
                values[step, number] = np.nan if row[name] in (None, "") else row[name]
            except (TypeError, ValueError) as error:
                raise DataError(
                    f"data.series: {name} is {row[name]!r} in row {step} of the split, no number"
                ) from error
    return values
