"""Pictures of a training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

FORECASTS_FILE = "forecasts.png"
MEASURES = ("token_accuracy", "accuracy", "mae")  # beside the loss, the first of these that is logged


def _figure(**options) -> Any:
    from matplotlib.figure import Figure  # here, as the first step of a run should not wait for it

    return Figure(**options)


def training_curves(log_history: Sequence[dict[str, Any]], path: Path, label_smoothing: float = 0.0) -> None:
    """Draws loss and accuracy over the steps, training and validation, as a PNG.

    Args:
        log_history: of `TrainerState`: one dict a log line, with "step".
        label_smoothing: told beside the training loss, which it raises above that of validation.
    """
    logged = {key.removeprefix("eval_") for entry in log_history for key in entry}
    panels = ["loss", *[name for name in MEASURES if name in logged][:1]]
    figure = _figure(figsize=(5 * len(panels), 4), layout="constrained")
    for axes, train in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        smoothed = f" (label smoothing {label_smoothing:g})" if label_smoothing and train == "loss" else ""
        for key, label in ((train, f"train{smoothed}"), (f"eval_{train}", "validation")):
            points = [(entry["step"], entry[key]) for entry in log_history if key in entry]
            if points:
                # A single point makes no line: mark it.
                axes.plot(*zip(*points, strict=True), label=label, marker="o" if len(points) < 30 else None, ms=3)
        axes.set(title="loss per item" if train == "loss" else train.replace("_", " "), xlabel="optimizer step")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.savefig(path, dpi=120)


def forecasts(
    series: Sequence[str],
    pasts: Sequence[np.ndarray],
    futures: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
    path: Path,
) -> None:
    """Draws windows side by side, a row of panels for each of C series, as a PNG.

    Args:
        pasts: one array (L, C) a window. futures, predictions: (H, C) likewise.
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


def attention_and_losses(
    maps: Sequence[tuple[str, np.ndarray, Sequence[str], Sequence[str]]],
    losses: Sequence[float],
    tokens: Sequence[str],
    path: Path,
) -> None:
    """Draws attention maps side by side, and below them the loss of each step of teacher forcing, as a PNG.

    Args:
        maps: title, weights (T, K), the T tokens that look, and the K tokens that are looked at.
        losses: in nats, one a step. tokens: the right one of each step.
    """
    longest = max(len(tokens), *(len(columns) for *_, columns in maps))
    size = min(9.0, max(5.0, 0.5 + longest / 9))  # inches; grows until a token has a line of small print
    # A dollar sign in a token is only that, no formula.
    print_of_tokens: dict[str, Any] = {"fontsize": max(4, min(9, 50 * size / longest)), "parse_math": False}
    figure = _figure(figsize=(3.2 * size, 1.6 * size), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=[1.6, 1])
    upper, lower = halves
    panels = upper.subplots(1, len(maps), squeeze=False)[0]
    for axes, (title, weights, rows, columns) in zip(panels, maps, strict=True):
        image = axes.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(columns)), columns, rotation=90, **print_of_tokens)
        axes.set_yticks(range(len(rows)), rows, **print_of_tokens)
        axes.set_title(title, fontsize=10)
    upper.colorbar(image, ax=panels, label="weight", shrink=0.8)
    axes = lower.subplots()
    axes.bar(range(len(losses)), losses, color="#2a5a9c")
    axes.set_xticks(range(len(losses)), tokens, rotation=90, **print_of_tokens)
    axes.set(xlim=(-0.6, len(losses) - 0.4), xlabel="right token of the step", ylabel="loss (nats)")
    axes.set_title(f"teacher forcing: the loss of each step, {sum(losses):.4f} in all", fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    figure.savefig(path, dpi=120)
