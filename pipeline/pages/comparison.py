"""Show a comparison of systems as one HTML page: scores and tests, groups of rows, and the sentences that differ."""

from pathlib import Path

from pipeline.inference.compare import FEWEST_DIFFERENT, Comparison, MetricResult
from pipeline.pages.base import render

LEVEL = 0.05  # below which a p is shown as significant
LONG = 1_500  # characters of a text that gets a box to scroll in


def write_page(comparison: Comparison, path: Path) -> None:
    """Write a comparison as a page in UTF-8."""
    path.write_text(render_page(comparison), encoding="utf-8")


def render_page(comparison: Comparison) -> str:
    """Return the page as HTML."""
    return render(
        "comparison",
        comparison=comparison,
        tests=list(dict.fromkeys(test for metric in comparison.metrics for test in metric.scores[-1].p_values)),
        ranges={metric.name: interval_places(metric) for metric in comparison.metrics},
        too_few=[pair for pair in comparison.pairs if pair.num_different < FEWEST_DIFFERENT],
        fewest=FEWEST_DIFFERENT,
        level=LEVEL,
        long=LONG,
        number=format_score,
        signed=format_difference,
        probability=format_p,
        best=best_systems,
    )


def interval_places(metric: MetricResult) -> list[tuple[float, float, float]]:
    """Return for each system where its interval begins, how wide it is, and where its score is, in percent of the room
    that all systems need."""
    low = min(min(score.mean - score.ci, score.score) for score in metric.scores)
    room = max(max(score.mean + score.ci, score.score) for score in metric.scores) - low or 1.0
    return [
        (100 * (score.mean - score.ci - low) / room, 200 * score.ci / room, 100 * (score.score - low) / room)
        for score in metric.scores
    ]


def best_systems(scores: list[float], title: str, comparison: Comparison) -> list[bool]:
    """Tell which of the systems have the best score as it is shown; none where all are equal."""
    is_lower = any(metric.title == title and metric.better == "lower" for metric in comparison.metrics)
    shown = [format_score(score, title) for score in scores]
    top = shown[scores.index(min(scores) if is_lower else max(scores))]
    return [text == top and len({*shown}) > 1 for text in shown]


def format_score(score: float, title: str) -> str:
    """Format a score: with four decimals if it goes from 0 to 1, with two if it goes to 100."""
    return f"{score + 0.0:.{digits(title)}f}"


def format_difference(difference: float, title: str) -> str:
    """Format a difference with its sign; a true minus, and none before zero."""
    rounded = round(difference, digits(title)) + 0.0
    return f"{rounded:+.{digits(title)}f}".replace("-", "−") if rounded else f"{0:.{digits(title)}f}"


def digits(title: str) -> int:
    return 4 if title == "exact match" else 2


def format_p(p: float | None) -> str:
    """Format a p with the digits that a thousand resamples give; None was not tested."""
    if p is None:
        return "–"
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"
