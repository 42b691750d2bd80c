"""Pictures of a training run and of what a model does, as PNG files."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Of Okabe and Ito, told apart by colour-blind readers as well, with a grey for the yellow that is faint on
# white: https://jfly.uni-koeln.de/color/. As many colours as dashes would pair them in the same way again.
RUN_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9", "#7F7F7F")
RUN_DASHES = ("-", "--", ":")
LEGEND_WIDTH = 45  # characters, for each panel above it


def _figure(**options) -> Any:
    from matplotlib.figure import Figure  # here, as the first step of a run should not wait for it

    return Figure(**options)


def draw_training_curves(
    log_history: Sequence[dict[str, Any]], path: Path, score: str | None, label_smoothing: float = 0.0
) -> None:
    """Draw the loss over the steps, and beside it a score if it was logged, of training and validation.

    Args:
        log_history: of `TrainerState`: one dict a log line, with "step".
        score: its name as training logs it; validation logs it with `eval_` before it.
        label_smoothing: named beside the training loss, which it raises above the loss of validation.
    """
    logged = {key.removeprefix("eval_") for line in log_history for key in line}
    panels = ["loss", score] if score is not None and score in logged else ["loss"]
    figure = _figure(figsize=(5 * len(panels), 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        smoothed = f" (label smoothing {label_smoothing:g})" if label_smoothing and name == "loss" else ""
        for key, label in ((name, f"train{smoothed}"), (f"eval_{name}", "validation")):
            points = [(line["step"], line[key]) for line in log_history if key in line]
            if points:
                # A single point draws no line, so few points get markers.
                axes.plot(*zip(*points, strict=True), label=label, marker="o" if len(points) < 30 else None, ms=3)
        axes.set(title="loss per item" if name == "loss" else name.replace("_", " "), xlabel="optimizer step")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.savefig(path, dpi=120)


def draw_runs(curves: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]], path: Path) -> None:
    """Draw several runs over their steps, a panel for each title; a run has the same colour and dashes in all.

    Args:
        curves: title -> run -> (step, value).
    """
    runs = list(dict.fromkeys(run for lines in curves.values() for run in lines))
    columns = max(1, min(len(runs), 4, LEGEND_WIDTH * len(curves) // max(map(len, runs))))
    size = (5 * len(curves), 3.8 + 0.22 * math.ceil(len(runs) / columns))
    figure = _figure(figsize=size, layout="constrained")
    handles: dict[str, Any] = {}
    for axes, (title, lines) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        for run, points in lines.items():
            number = runs.index(run)
            style: dict[str, Any] = {
                "color": RUN_COLOURS[number % len(RUN_COLOURS)],
                "linestyle": RUN_DASHES[number % len(RUN_DASHES)],
                "marker": "o" if len(points) < 30 else None,
            }
            [handles[run]] = axes.plot(*(zip(*points, strict=True) if points else ((), ())), ms=3, lw=1.5, **style)
        axes.set_title(title, parse_math=False)
        axes.set(xlabel="optimizer step")
        axes.grid(alpha=0.3)
    # A name that begins with an underscore would be left out.
    labels = [f" {run}" for run in runs]
    legend = figure.legend([handles[run] for run in runs], labels, loc="outside lower center", ncols=columns)
    for text in legend.get_texts():
        text.set_parse_math(False)
    figure.savefig(path, dpi=120)


def draw_forecasts(
    series: Sequence[str],
    pasts: Sequence[np.ndarray],
    futures: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
    path: Path,
) -> None:
    """Draw windows side by side, with a row of panels for each of C series.

    Args:
        pasts: for each window, an array (L, C). futures, predictions: likewise, (H, C).
    """
    figure = _figure(figsize=(4.2 * len(pasts), 1.8 * len(series)), layout="constrained")
    grid = figure.subplots(len(series), len(pasts), squeeze=False, sharex=True)
    for column, (past, future, prediction) in enumerate(zip(pasts, futures, predictions, strict=True)):
        before, after = range(-len(past), 0), range(len(future))
        for row, name in enumerate(series):
            axes = grid[row][column]
            axes.plot(before, past[:, row], color="0.6", lw=0.8, label="history")
            axes.plot(after, future[:, row], color="tab:blue", lw=1.2, label="truth")
            axes.plot(after, prediction[:, row], color="tab:orange", lw=1.2, label="forecast")
            axes.axvline(0, color="0.8", lw=0.8)
            if column == 0:
                axes.set_ylabel(name)
        grid[-1][column].set_xlabel("steps from the present")
    grid[0][0].legend(loc="upper left", fontsize=7)
    figure.savefig(path, dpi=100)


def draw_attention_and_losses(
    maps: Sequence[tuple[str, np.ndarray, Sequence[str], Sequence[str]]],
    losses: Sequence[float],
    tokens: Sequence[str],
    path: Path,
) -> None:
    """Draw attention maps side by side, and below them the loss of each step of teacher forcing.

    Args:
        maps: title, weights (T, K), the T tokens that look, and the K tokens that are looked at.
        losses: in nats, one a step. tokens: the right one of each step.
    """
    longest = max(len(tokens), *(len(columns) for *_, columns in maps))
    size = min(9.0, max(5.0, 0.5 + longest / 9))  # inches; grows until a token has a line of small print
    # Without parsing, as a dollar sign in a token does not begin a formula.
    token_style: dict[str, Any] = {"fontsize": max(4, min(9, 50 * size / longest)), "parse_math": False}
    figure = _figure(figsize=(3.2 * size, 1.6 * size), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=[1.6, 1])
    upper, lower = halves
    panels = upper.subplots(1, len(maps), squeeze=False)[0]
    for axes, (title, weights, rows, columns) in zip(panels, maps, strict=True):
        image = axes.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(columns)), columns, rotation=90, **token_style)
        axes.set_yticks(range(len(rows)), rows, **token_style)
        axes.set_title(title, fontsize=10)
    upper.colorbar(image, ax=panels, label="weight", shrink=0.8)
    axes = lower.subplots()
    axes.bar(range(len(losses)), losses, color="#2a5a9c")
    axes.set_xticks(range(len(losses)), tokens, rotation=90, **token_style)
    axes.set(xlim=(-0.6, len(losses) - 0.4), xlabel="right token of the step", ylabel="loss (nats)")
    axes.set_title(f"teacher forcing: the loss of each step, {sum(losses):.4f} in all", fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    figure.savefig(path, dpi=120)


def draw_lengths(counts: Mapping[str, Mapping[str, Mapping[int, int]]], limits: Mapping[str, int], path: Path) -> None:
    """Draw how long the texts of several sets are, a panel for each side: histograms of the share of each set's texts.

    The longest texts, 0.5 % of a set, may lie beyond the picture; the panel says how long they are.

    Args:
        counts: side -> set -> tokens -> texts.
        limits: side -> the most tokens that training takes, a line where it lies in the picture.
    """
    sets = list(dict.fromkeys(name for lines in counts.values() for name in lines))
    columns = max(1, min(len(sets), 4, LEGEND_WIDTH * len(counts) // max(map(len, sets))))
    size = (5 * len(counts), 3.8 + 0.22 * math.ceil(len(sets) / columns))
    figure = _figure(figsize=size, layout="constrained")
    handles: dict[str, Any] = {}
    for axes, (side, lines) in zip(figure.subplots(1, len(counts), squeeze=False)[0], counts.items(), strict=True):
        edges = _edges([texts for texts in lines.values() if texts])
        for name, texts in lines.items():
            number = sets.index(name)
            shares, _ = np.histogram([*texts], edges, weights=[*texts.values()])
            handles[name] = axes.stairs(
                100 * shares / max(1, sum(texts.values())),
                edges - 0.5,
                color=RUN_COLOURS[number % len(RUN_COLOURS)],
                linestyle=RUN_DASHES[number % len(RUN_DASHES)],
                fill=len(sets) == 1,
                lw=1.5,
            )
        if side in limits and limits[side] < edges[-1]:
            axes.axvline(limits[side] + 0.5, color="0.3", lw=1, ls=":")
            place = (limits[side], 0.98)
            label = f"max_{side}_length={limits[side]}"
            axes.annotate(label, place, xycoords=axes.get_xaxis_transform(), rotation=90, va="top", ha="right", size=8)
        longest = max((length for texts in lines.values() for length in texts), default=0)
        axes.set(title=f"{side}: up to {longest:,} tokens", xlabel="tokens", ylabel="% of the texts")
        axes.set_xlim(0, edges[-1])
        axes.grid(alpha=0.3)
    # A name that begins with an underscore would be left out.
    labels = [f" {name}" for name in sets]
    figure.legend([handles[name] for name in sets], labels, loc="outside lower center", ncols=columns)
    figure.savefig(path, dpi=120)


def _edges(counts: Sequence[Mapping[int, int]]) -> np.ndarray:
    """Return where the bars of a histogram begin and end, in whole tokens; it has nearly all texts of each set."""
    longest = 1
    for texts in counts:
        lengths = sorted(texts)
        sums = np.cumsum([texts[length] for length in lengths])
        longest = max(longest, lengths[int(np.searchsorted(sums, 0.995 * sums[-1]))])
    width = math.ceil(longest / 40)
    return np.arange(0, longest + 2 * width, width)
