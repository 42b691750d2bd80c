"""The turns that were measured, kept in a file a line each, and the medians and ratios over them."""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, explain_path
from scripts.benchmark_setting import Measure, Numbers, Ratio

KEYS = ("part", "of", "contender", "time", "machine", "numbers")  # of a turn
Turns = dict[str, list[Numbers]]  # contender -> the numbers of its turns


def append(path: Path, turn: Mapping[str, Any]) -> None:
    """Add a turn: its part, what was measured (`of`), on which machine, the contender and its numbers."""
    with explain_path(f"--output {path}"), path.open("a") as stream:
        stream.write(json.dumps(turn) + "\n")


def read_turns(path: Path) -> list[dict[str, Any]]:
    """Return the turns of a file, the first first.

    Raises:
        ConfigError: for a file that cannot be read, or a line that is not a turn.
    """
    turns = []
    with explain_path(f"--output {path}"):
        lines = path.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            turn = json.loads(line)
            turns.append({name: turn[name] for name in KEYS})
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{path}:{number}: not a turn of this benchmark ({error}); take another file") from error
    return turns


def report(turns: Sequence[Mapping[str, Any]], ratios: Mapping[str, Sequence[Ratio]]) -> Iterator[str]:
    """Describe all turns: of each part, and of each thing that was measured, medians, ranges and ratios."""
    groups: dict[tuple[str, str, str], Turns] = {}
    for turn in turns:
        machine = json.dumps(turn["machine"])
        by_contender = groups.setdefault((machine, turn["part"], turn["of"]), {})
        by_contender.setdefault(turn["contender"], []).append(turn["numbers"])
    last_machine = None
    for (machine, part, of), by_contender in groups.items():
        if machine != last_machine:
            yield from (f"{name}: {value}" for name, value in json.loads(machine).items())
            last_machine = machine
        yield f"\n{part}: {of}"
        for contender, numbers in by_contender.items():
            yield f"  {contender}"
            yield from (f"    {line}" for line in describe_numbers(numbers))
        yield from describe_ratios(by_contender, ratios.get(part, ()))
        yield from describe_answers(by_contender)


def describe_numbers(turns: Sequence[Numbers]) -> Iterator[str]:
    for name in dict.fromkeys(name for numbers in turns for name in numbers):
        values = [numbers[name] for numbers in turns if name in numbers]
        if isinstance(values[0], str):
            yield f"{name:<44} {values[-1]}"
        elif not isinstance(values[0], list):
            count = f"{len(values)} turn{'s' * (len(values) > 1)}"
            yield f"{name:<44} {statistics.median(values):>12,.5g}   {min(values):,.5g} to {max(values):,.5g}, {count}"


def describe_ratios(turns: Turns, ratios: Sequence[Ratio]) -> Iterator[str]:
    """Give quotients of medians; and their range over the first, second, ... turns of both sides."""
    for ratio in ratios:
        below = [values for measure in ratio.below if (values := values_of(turns, measure))]
        above = values_of(turns, ratio.above)
        factors = values_of(turns, ratio.factor) if ratio.factor is not None else [1.0]
        if not (above and below and factors):
            continue
        greatest = max(below, key=statistics.median)
        factor = statistics.median(factors)
        median = factor * statistics.median(above) / statistics.median(greatest)
        singles = [factor * one / other for one, other in zip(above, greatest, strict=False)]
        goal = f"; goal {ratio.goal}" if ratio.goal else ""
        yield f"  {ratio.title:<46} {median:>12.3f}   {min(singles):.3f} to {max(singles):.3f}{goal}"


def values_of(turns: Turns, measure: Measure) -> list[float]:
    return [numbers[measure.name] for numbers in turns.get(measure.contender, []) if measure.name in numbers]


def describe_answers(turns: Turns) -> Iterator[str]:
    """Count the answers of each contender that differ from those of another one, which it names as its reference."""
    for contender, numbers in turns.items():
        last = numbers[-1]
        if "answers" in last and last.get("reference") in turns:
            pairs = [*zip(last["answers"], turns[last["reference"]][-1]["answers"], strict=True)]
            differ = sum(one != other for one, other in pairs)
            yield f"  {contender}: {differ} of {len(pairs)} answers differ from {last['reference']}"
