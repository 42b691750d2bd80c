"""teacher-forcing inspect: what the data of a config hold, before anything is trained."""

import dataclasses
import itertools
import logging
import os
import unicodedata
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.commands.arguments import Parser, add_json, path, positive
from pipeline.commands.process import quick_imports, show_logs
from pipeline.commands.report import Report
from pipeline.errors import ConfigError, explain_path, one_line

if TYPE_CHECKING:
    from pipeline.inspection.inspection import Inspection
    from pipeline.inspection.rows import Example, Found
    from pipeline.inspection.series import SeriesReport
    from pipeline.inspection.texts import TextReport

WIDTH = 80  # columns of a terminal
NAME = 20  # columns of what is counted
BAR = 14  # columns of the longest bar
BARS = 12
SHOWN_LANGUAGES = 6
SHOWN_SHARE = 0.001
SHOWN_CLASSES = 20
SHOWN_ABOVE = ("drop_held_out", "drop_duplicates")  # rules whose examples are those of another line
PICTURES = (".png", ".svg", ".pdf")


def add_arguments(parser: Parser) -> None:
    parser.add_argument("config", type=path, help="YAML file, such as configs/reversal.yaml")
    parser.add_argument("overrides", nargs="*", help="section.key=value, the value in YAML")
    parser.add_argument(
        "--rows",
        type=positive,
        metavar="N",
        help="look at the first N rows of each corpus and set (default: all, and 100,000 of a stream)",
    )
    parser.add_argument(
        "--output", type=path, metavar="FILE.png", help=f"draw the lengths of the texts: {', '.join(PICTURES)}"
    )
    add_json(parser)


def run(arguments: Namespace) -> Report:
    """Look at the data of a config: lengths, bad rows, what filters would take, duplicates, overlaps, encodings.

    No model is made, and nothing is written but --output.
    """
    picture = arguments.output
    if picture is not None:
        if picture.suffix not in PICTURES or picture.is_dir():
            raise ConfigError(f"--output {picture}: name a picture that ends in {', '.join(PICTURES)}")
        with explain_path(f"--output {picture}"):  # before all rows are read
            os.stat(picture.parent)
    with quick_imports():
        from pipeline.inspection.inspection import inspect
        from pipeline.plots import draw_lengths
        from pipeline.tasks.config_loading import load_config
        from pipeline.tasks.registry import get_task

    show_logs(logging.INFO)
    config = load_config(arguments.config, arguments.overrides)
    if picture is not None and not get_task(config.task).text_columns:
        raise ConfigError(f"--output: {config.task} has no texts whose lengths could be drawn; leave it out")
    inspection = inspect(config, arguments.rows)
    if picture is not None:
        with explain_path(f"--output {picture}"):
            draw_lengths(*_lengths_to_draw(inspection), picture)
    document = {**dataclasses.asdict(inspection), "picture": None if picture is None else str(picture)}
    return Report(document, "\n".join([*_describe(inspection), *([f"\n{picture}"] if picture else [])]))


def _lengths_to_draw(inspection: "Inspection") -> tuple[dict[str, dict[str, Any]], dict[str, int]]:
    """Return the counts of lengths by side and set, and the bounds by side."""
    sides = inspection.texts[0].lengths
    counts = {side: {report.place: report.lengths[side].counts for report in inspection.texts} for side in sides}
    return counts, {side: lengths.limit for side, lengths in sides.items() if lengths.limit is not None}


# ---- the text


def _describe(inspection: "Inspection") -> Iterator[str]:
    yield _line("task", inspection.task)
    if inspection.tokenizer is not None:
        yield _line("tokenizer", inspection.tokenizer)
    for texts in inspection.texts:
        yield from _describe_set(texts)
        yield from _describe_texts(texts)
    for series in inspection.series:
        yield from _describe_set(series)
        yield from _describe_series(series)


def _describe_set(report: "TextReport | SeriesReport") -> Iterator[str]:
    yield ""
    where = f"{report.path} ({report.split})" if report.path else report.split
    yield _fit(f"{report.place}: {where}", WIDTH)
    yield _line("rows", f"{report.rows:,}{', all there are' if report.is_whole else ', the first ones'}")


def _describe_texts(report: "TextReport") -> Iterator[str]:
    yield from _found("bad rows", report.bad)
    yield from _describe_lengths(report)
    yield from _describe_classes(report)
    if report.repeated is not None:
        yield from _found("equal to an earlier", report.repeated.rows)
        name = "texts, many classes" if report.classes is not None else "sources, many targets"
        yield from _found(name, report.repeated.sources)
    for place, overlap in report.overlap.items():
        yield from _found(f"also in {place}", overlap.rows, f", as {overlap.held_out_rows:,} of its rows")
        if overlap.sources.count > overlap.rows.count:
            yield from _found("  its sources", overlap.sources, f", as {overlap.held_out_sources:,} of its rows")
    yield from _describe_tokens(report)
    yield from _describe_faults(report)
    yield from _describe_languages(report)
    yield from _describe_rules(report)


def _describe_rules(report: "TextReport") -> Iterator[str]:
    if report.filters:
        yield "  What each rule of data.filters would take by itself"
    for name, trial in report.filters.items():
        value = "" if trial.value is True else f" {_value(trial.value)}"
        found = dataclasses.replace(trial.found, examples=[]) if name in SHOWN_ABOVE else trial.found
        yield from _found(f"{name}{value} ({'on' if trial.is_on else 'off'})", found, is_wide=True)


def _describe_lengths(report: "TextReport") -> Iterator[str]:
    for side, lengths in report.lengths.items():
        over = "" if lengths.limit is None else f", {lengths.over:,} over max_{side}_length={lengths.limit}"
        yield _line(f"tokens of {side}", f"median {lengths.median}, p95 {lengths.p95}, max {lengths.longest:,}{over}")
    if report.ratio is not None:
        ratio = report.ratio
        yield _line(
            "target / source",
            f"median {ratio.median:g}, 5 % below {ratio.p5:g}, 5 % above {ratio.p95:g}, from {ratio.smallest:g} to "
            f"{ratio.largest:g}",
        )
    edges = _choose_bars([lengths.counts for lengths in report.lengths.values()])
    rows = [[*_histogram(lengths.counts, edges)] for lengths in report.lengths.values()]
    highest = max(1, *map(max, rows))
    yield f"{'':>{NAME}}" + "".join(f"  {side:<{BAR + 12}}" for side in report.lengths).rstrip()
    for (begin, end), *counts in zip(itertools.pairwise(edges), *rows, strict=True):
        cells = [f"  {'█' * round(BAR * count / highest):<{BAR}}{count:>11,} " for count in counts]
        yield f"{f'{begin:,}-{end - 1:,}' if end - 1 > begin else f'{begin:,}':>{NAME}}" + "".join(cells).rstrip()


def _choose_bars(sides: Sequence[Mapping[int, int]]) -> list[int]:
    """Return where the bars of a histogram begin and end: of one round width, the last one with all that is longer."""
    from pipeline.inspection.sides import quantiles

    longest = max((length for counts in sides for length in counts), default=1)
    usual = max(quantiles(counts, (0.99,))[0] for counts in sides)
    widths = (step * 10**power for power in itertools.count() for step in (1, 2, 5))
    width = next(width for width in widths if width * BARS >= usual)
    edges = [*range(1, max(2, usual + 1), width)]
    return [*edges, max(edges[-1] + width, longest + 1)]


def _histogram(counts: Mapping[int, int], edges: Sequence[int]) -> Iterator[int]:
    for begin, end in itertools.pairwise(edges):
        yield sum(texts for length, texts in counts.items() if begin <= length < end)


def _describe_classes(report: "TextReport") -> Iterator[str]:
    if report.classes is None:
        return
    total = max(1, sum(report.classes.values()))
    counts = [*report.classes.items()]
    if counts:
        (largest, most), (smallest, least) = counts[0], counts[-1]
        yield _line(
            "classes", f"{len(counts):,}; the largest, {largest}, has {most / max(1, least):,.1f} times {smallest}"
        )
    for name, count in counts[:SHOWN_CLASSES]:
        yield f"    {_fit(name, NAME - 2, fill=True)}{count:>9,}{count / total:>8.1%}"
    if len(counts) > SHOWN_CLASSES:
        yield _line("", f"and {len(counts) - SHOWN_CLASSES:,} more")
    for name, count in [*report.unseen_classes.items()][:SHOWN_CLASSES]:
        yield _line("not in the training", f"{name}: {count:,} rows")


def _describe_tokens(report: "TextReport") -> Iterator[str]:
    for side, unwritten in report.unwritten.items():
        if unwritten.tokens:
            pieces = ", ".join(f"{_character(piece)} {count:,}" for piece, count in unwritten.pieces.items())
            yield _line(
                f"unknown in {side}", f"{unwritten.tokens:,} tokens, {unwritten.share:.2%}; most often {pieces}"
            )
        if unwritten.lost_characters:
            lost = ", ".join(f"{_character(name)} {count:,}" for name, count in unwritten.lost_characters.items())
            yield _line(f"lost in {side}", f"characters that come back as others: {lost}")
        yield from _found(
            f"changed {side}", unwritten.changed, f" of {unwritten.tried:,} are not what was encoded", is_short=True
        )


def _describe_faults(report: "TextReport") -> Iterator[str]:
    from pipeline.data.text_faults import DECOMPOSED, FAULTS

    for name, found in report.faults.items():
        mixed = f"; {report.composed:,} rows have composed ones" if name == DECOMPOSED and report.composed else ""
        yield from _found(name, found, f" rows: {FAULTS[name]}{mixed}")
    if not report.faults:
        yield _line("suspicious encodings", "none")


def _describe_languages(report: "TextReport") -> Iterator[str]:
    if report.languages is None:
        yield _line("languages", "pip install 'teacher-forcing[inspect]' to have them identified")
        return
    for side, languages in report.languages.items():
        total = sum(languages.counts.values())
        common = [(code, count / total) for code, count in languages.counts.items()][:SHOWN_LANGUAGES]
        shares = ", ".join(f"{code} {share:.1%}" for code, share in common if share >= SHOWN_SHARE)
        yield _line(f"languages of {side}", f"{shares} of {total:,} rows")
        of_most = "" if languages.is_given else ", the language of most rows"
        yield from _found(f"  not {languages.expected}", languages.other, of_most)


def _describe_series(report: "SeriesReport") -> Iterator[str]:
    yield _line("windows", f"{report.windows:,}{'' if report.windows else ': the split is shorter than one'}")
    if report.disorder:
        yield _line("order", report.disorder)
    width = max(10, *(len(name) for name in report.series))
    yield f"  {'series':<{width}} {'min':>11} {'mean':>11} {'max':>11} {'missing':>9} {'gap':>7}"
    for name, series in report.series.items():
        numbers = f"{series.minimum:>11.5g} {series.mean:>11.5g} {series.maximum:>11.5g}"
        note = "  constant" if series.is_constant else ""
        yield f"  {name:<{width}} {numbers} {series.missing:>9,} {series.longest_gap:>7,}{note}"
    for name, series in report.series.items():
        if series.not_numbers.count:
            yield from _found(f"no number: {name}", series.not_numbers)


def _found(
    name: str, found: "Found", text: str = "", *, is_wide: bool = False, is_short: bool = False
) -> Iterator[str]:
    """Yield how many rows were found, and examples: where, why, and the texts.

    Args:
        text: behind the number.
        is_wide: whether the name has half of the line.
        is_short: whether nothing is said where none were found.
    """
    if is_short and not found.count:
        return
    yield _line(name, f"{found.count:,}{text}", WIDTH // 2 + 6 if is_wide else NAME)
    for example in found.examples:
        yield _fit(f"      {Path(example.place).name}{f': {example.reason}' if example.reason else ''}", WIDTH)
        yield from _texts(example)


def _texts(example: "Example") -> Iterator[str]:
    """Yield the texts of an example, side by side."""
    texts = [*example.texts.values()]
    if texts:
        width = (WIDTH - 8 - 3 * (len(texts) - 1)) // len(texts)
        yield "        " + " | ".join(_fit(text, width, fill=len(texts) > 1) for text in texts).rstrip()


def _value(value: Any) -> str:
    """Write the value of a rule."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_value(item)}" for name, item in value.items())
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _character(piece: str) -> str:
    """Write a piece of text; a single character with its code point, as it may be one that nobody sees."""
    return f"{piece!r} (U+{ord(piece):04X})" if len(piece) == 1 else repr(piece)


def _line(name: str, text: str, column: int = NAME) -> str:
    """Return a line of a table, and the further ones that a long text takes."""
    lead = f"  {name:<{column}}" if _columns(name) < column else f"  {name} "
    lines, line = [], lead
    for word in one_line(text).split(" "):
        if line.strip() and _columns(line) + _columns(word) >= WIDTH and line != " " * (column + 2):
            lines.append(line.rstrip())
            line = " " * (column + 2)
        line += f"{_fit(word, WIDTH - column - 3)} "
    return "\n".join([*lines, line.rstrip()])


def _fit(text: str, width: int, fill: bool = False) -> str:
    """Return a text in one line of so many columns: cut at its end, or filled with spaces."""
    indent = text[: len(text) - len(text.lstrip(" "))]
    line = indent + one_line(text)
    if _columns(line) > width:
        while _columns(line) > width - 3:
            line = line[:-1]
        line += "..."
    return line + " " * (width - _columns(line)) if fill else line


def _columns(text: str) -> int:
    """Count the columns that a terminal needs: two for a character of East Asia, none for an accent by itself."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )
