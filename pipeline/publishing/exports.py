"""What the exports beside a model say of themselves, for its card: a table of how each compares with the model."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from jinja2 import Template
from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from pipeline.errors import ConfigError, one_line
from pipeline.inference.engines.base import describe_weights
from pipeline.publishing.card import USE, escape

TEMPLATE = Path(__file__).with_name("exports.md.jinja")
SECTION = re.compile(
    r"^## Exports\n\n<!-- exports;[^\n]*-->\n.*?^<!-- end of exports -->$\n*", re.DOTALL | re.MULTILINE
)
REPORTS = "exports/*/equivalence.json"
Count = Annotated[int, Field(ge=0, le=2**60)]

logger = logging.getLogger(__name__)


class Rows(BaseModel):
    compared: Count


class Sizes(BaseModel):
    """In bytes."""

    model: Annotated[int, Field(gt=0, le=2**60)]
    export: Count


class Rate(BaseModel):
    ratio: FiniteFloat


class Bleu(BaseModel):
    difference: FiniteFloat
    interval: tuple[FiniteFloat, FiniteFloat]


class Search(BaseModel):
    """How the answers of greedy or beam search compare; with a score only where texts are translated."""

    equal: Count
    rows_per_second: Rate
    references: bool = True  # or the score is that against the model's own answers
    bleu: Bleu | None = None


class Searches(BaseModel):
    greedy: Search
    beam_4: Search | None = None


class Choices(BaseModel):
    compared: Count
    different: Count


class Outputs(BaseModel):
    unit: str
    largest_difference: FiniteFloat
    choices: Choices
    rows_per_second: Rate


class Report(BaseModel):
    """Of `equivalence.json`, which `exporting/equivalence.py` explains, what a card shows; the rest is passed over."""

    export: str
    quantization: str | None
    weights: dict[str, dict[str, int | str]]
    bytes: Sizes
    rows: Rows
    searches: Searches | None = None
    outputs: Outputs | None = None


def read_reports(folder: Path) -> list[Report]:
    """Read the reports of all exports of the model in a folder, but of those that were made of other weights.

    Raises:
        ConfigError: for one that cannot be read.
    """
    paths = sorted(folder.glob(REPORTS))
    weights = describe_weights(folder) if paths else {}
    reports = []
    for path in paths:
        try:
            report = Report.model_validate_json(path.read_bytes())
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(map(str, problem["loc"]))
            raise ConfigError(f"{path}: {place}: {one_line(problem['msg'])}; export again, or remove it") from error
        if report.weights == weights:
            reports.append(report)
        else:
            logger.warning("%s is of other weights; export again to have it in the card", path)
    return reports


def put_exports(card: str, reports: Sequence[Report]) -> str:
    """Return a card that shows how exports of the model compare with it, in front of the section on its use.

    All that stands outside of that section stays as it is; without reports there is none.
    """
    card = SECTION.sub("", card)
    if not reports:
        return card
    section = Template(TEMPLATE.read_text(encoding="utf-8")).render(
        searched=[cells for report in reports if (cells := _searched(report))],
        computed=[cells for report in reports if (cells := _computed(report))],
    )
    if use := USE.search(card):
        return f"{card[: use.start()]}{section}\n\n{card[use.start() :]}"
    return f"{card.rstrip()}\n\n{section}\n"


def _searched(report: Report) -> list[str]:
    """Return the cells of an export whose answers were compared and scored; none of another."""
    greedy, beam = (report.searches.greedy, report.searches.beam_4) if report.searches else (None, None)
    if greedy is None or beam is None or beam.bleu is None:
        return []
    low, high = beam.bleu.interval
    against = "" if beam.references else ", against its own answers"
    return [
        *_names(report),
        f"{greedy.equal:,}",
        f"{beam.equal:,}",
        f"{beam.bleu.difference:+.2f} ({low:+.2f} to {high:+.2f}){against}",
        _size(report),
        f"{greedy.rows_per_second.ratio:.2f} times greedy, {beam.rows_per_second.ratio:.2f} times beam 4",
    ]


def _computed(report: Report) -> list[str]:
    """Return the cells of an export whose outputs were compared, and its answers where it has any; none of another."""
    outputs = report.outputs
    if outputs is None:
        return []
    compared, different = outputs.choices.compared, outputs.choices.different
    return [
        *_names(report),
        f"{report.searches.greedy.equal:,}" if report.searches else "-",
        f"{compared - different:,} of {compared:,}" if compared else "-",  # a forecast is no choice
        f"{outputs.largest_difference:.1e} ({escape(outputs.unit)})",
        _size(report),
        f"{outputs.rows_per_second.ratio:.2f} times",
    ]


def _names(report: Report) -> list[str]:
    return [escape(report.export), escape(report.quantization or "-"), f"{report.rows.compared:,}"]


def _size(report: Report) -> str:
    return f"{report.bytes.export / report.bytes.model:.2f} times"
