"""The values of time series."""

import math
from dataclasses import dataclass
from itertools import islice

from pipeline.config import Config
from pipeline.data.rows import PLACE, PROBLEM, shorten
from pipeline.data_config import errors_of, write_split
from pipeline.errors import DataError
from pipeline.inspection.rows import Example, Found, Row, Sample, Source, name_place
from pipeline.progress import progress_bar
from pipeline.setup.model_factory import given_settings, make_model_config
from pipeline.tasks.forecasting import TIME, check_order, to_number


@dataclass(frozen=True)
class Series:
    """The values of one series.

    Attributes:
        missing: empty, null, NaN or infinite.
    """

    missing: int
    longest_gap: int
    not_numbers: Found
    minimum: float
    maximum: float
    mean: float
    is_constant: bool


@dataclass(frozen=True)
class SeriesReport:
    """What a split of time series holds.

    Attributes:
        windows: samples of training, one beginning at each step; 0 where there are too few steps.
        disorder: what is wrong with the order of `forecasting.time`.
    """

    place: str
    path: str
    split: str
    rows: int
    is_whole: bool
    windows: int
    disorder: str | None
    series: dict[str, Series]


def inspect_series(config: Config, source: Source) -> SeriesReport:
    """Look at a split of time series."""
    names = config.task_settings.series
    columns = {name: _Column() for name in names}
    moments: list[Row] = []
    all_rows, rows = source.read_all(), 0
    with errors_of(source.place), progress_bar(f"reading {source.place}", "rows") as bar:
        for rows, row in enumerate(islice(all_rows, source.limit), 1):
            for name, column in columns.items():
                column.add(rows - 1, row, name)
            if TIME in row:
                moments.append({name: row[name] for name in (TIME, PLACE, PROBLEM) if name in row})
            bar.update()
        is_whole = next(all_rows, None) is None
    model = make_model_config(config, None, {"series": names} | given_settings(config))
    return SeriesReport(
        source.place,
        source.data.path,
        write_split(source.split),
        rows,
        is_whole,
        max(0, rows + 1 - model.context_length - model.prediction_length),
        _find_disorder(moments),
        {name: column.describe() for name, column in columns.items()},
    )


def _find_disorder(moments: list[Row]) -> str | None:
    try:
        check_order(moments)
    except DataError as error:
        return str(error)
    return None


class _Column:
    """The values of a series, one after another."""

    def __init__(self) -> None:
        self.missing = self.gap = self.longest_gap = self.count = 0
        self.minimum, self.maximum, self.mean = math.inf, -math.inf, 0.0
        self.not_numbers = Sample()

    def add(self, number: int, row: Row, name: str) -> None:
        try:
            value = math.nan if row.get(PROBLEM) else to_number(row[name])
        except (TypeError, ValueError, OverflowError):
            self.not_numbers.add(
                (number, Example(name_place(row, number), {name: shorten(row[name])}, "is not a number"))
            )
            value = math.nan
        if not math.isfinite(value):
            self.missing += 1
            self.gap += 1
            self.longest_gap = max(self.gap, self.longest_gap)
            return
        self.gap = 0
        self.count += 1
        self.minimum, self.maximum = min(value, self.minimum), max(value, self.maximum)
        self.mean += (value - self.mean) / self.count

    def describe(self) -> Series:
        is_constant = self.count > 0 and self.minimum == self.maximum
        bounds = (self.minimum, self.maximum, self.mean) if self.count else (math.nan,) * 3
        return Series(self.missing, self.longest_gap, self.not_numbers.found(), *bounds, is_constant)
