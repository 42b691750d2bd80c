"""Pictures of a training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

PANELS = (
    ("loss per token (nats)", "loss", "eval_loss"),
    ("token accuracy", "token_accuracy", "eval_token_accuracy"),
)


def training_curves(log_history: Sequence[dict[str, Any]], path: Path, label_smoothing: float = 0.0) -> None:
    """Draws loss and accuracy over the steps, training and validation, as a PNG.

    Args:
        log_history: of `TrainerState`: one dict a log line, with "step".
        label_smoothing: told beside the training loss, which it raises above that of validation.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, (title, train, validation) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        smoothed = f" (label smoothing {label_smoothing:g})" if label_smoothing and train == "loss" else ""
        for key, label in ((train, f"train{smoothed}"), (validation, "validation")):
            points = [(entry["step"], entry[key]) for entry in log_history if key in entry]
            if points:
                # A single point makes no line: mark it.
                axes.plot(*zip(*points, strict=True), label=label, marker="o" if len(points) < 30 else None, ms=3)
        axes.set(title=title, xlabel="optimizer step")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.savefig(path, dpi=120)
