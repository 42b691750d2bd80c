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
from pydantic import Field, field_validator
from torch import Tensor
from transformers import AutoModel, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from pipeline import plots
from pipeline.config import Config, DataConfig, Section, check_distinct
from pipeline.data.rows import BadRow, Columns, Feature, name_places
from pipeline.data.splits import Rows
from pipeline.errors import ConfigError, DataError
from pipeline.tasks.base import Batch, CardText, Task

DRAWN = 4  # windows, spread over the split
FORECASTS_FILE = "forecasts.png"


class ForecastingSettings(Section):
    series: list[str] = Field(
        min_length=1,
        description="columns of the series to forecast, such as [OT]",
        json_schema_extra={"formerly": "data.series"},
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
    scores: ClassVar[tuple[str, ...]] = (
        *("loss", "mse", "mae", "mse_original", "mae_original"),
        *("repeat_last_mse", "repeat_last_mae"),
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
    def columns(cls, config: Config) -> dict[str, str]:
        return {name: name for name in config.task_settings.series}

    @classmethod
    def model_settings(cls, config: Config, rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
        """Return the names of the series, and their means and standard deviations in the training rows.

        Raises:
            ConfigError: for a stream, whose steps would have no known order.
            DataError: for a series that never changes.
        """
        series = config.task_settings.series
        if config.data.streaming:
            raise ConfigError("data.streaming: windows of series are cut from a whole split; set it to false")
        values = _values(list(rows), series)
        means, stds = np.nanmean(values, 0), np.nanstd(values, 0)
        for name, std in zip(series, stds, strict=True):
            if not std > 0:
                raise DataError(
                    f"forecasting.series: {name} is the same in all rows of {config.data.train}; leave it out"
                )
        return {"series": series, "means": means.tolist(), "stds": stds.tolist()}

    def to_samples(self, rows: Rows) -> Rows:
        """Cut the rows into windows, each of which knows the row with which it begins.

        Raises:
            DataError: for fewer rows than a window has, or a value that is not a number.
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

    def encode(self, columns: Columns, limits: DataConfig | None = None) -> list[Feature | BadRow]:
        windows = zip(name_places(columns), columns["row"], columns["start"], columns["values"], strict=True)
        return [self._encode_window(*window) for window in windows]

    def _encode_window(self, place: str, row: int, start: int, values: np.ndarray) -> Feature | BadRow:
        values = np.asarray(values, dtype=np.float32)  # (L + H, C)
        if not np.isfinite(values).all():
            step, series = np.argwhere(~np.isfinite(values))[0]
            name, value = self.series[series], values[step, series]
            return BadRow(place, f"{name} is {value} in row {start + step} of the split, which is not finite")
        past, future = values[: self.context_length], values[self.context_length :]
        return {"sample_id": row, "source": "", "target": "", "past_values": past, "future_values": future}

    def lengths(self, feature: Feature) -> tuple[int, ...]:
        return (self.context_length,)

    def collate(self, features: list[Feature]) -> Batch:
        """Stack `past_values` (B, L, C) and `future_values` (B, H, C)."""
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
    """Return the values of all rows, (N, C); null and empty ones are NaN, which `encode` reports."""
    values = np.empty((len(rows), len(series)))
    for number, name in enumerate(series):
        for step, row in enumerate(rows):
            try:
                values[step, number] = np.nan if row[name] in (None, "") else row[name]
            except (TypeError, ValueError) as error:
                raise DataError(
                    f"forecasting.series: {name} is {row[name]!r} in row {step} of the split, not a number"
                ) from error
    return values
