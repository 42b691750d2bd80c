"""Learning-rate schedules that transformers lacks."""

from typing import Any


def noam(d_model: int, warmup_steps: int, factor: float = 1.0) -> dict[str, Any]:
    """Return training arguments for the schedule of the Transformer paper.

        lr(step) = factor * d_model^-0.5 * min(step^-0.5, step * warmup_steps^-1.5)

    That is transformers' `inverse_sqrt`, which rises linearly to its learning rate and then falls as
    sqrt(warmup_steps / step), with the learning rate at the paper's peak.

    Source: Vaswani et al. 2017, equation 3.
    """
    peak = factor * (d_model * warmup_steps) ** -0.5
    return {"lr_scheduler_type": "inverse_sqrt", "learning_rate": peak, "warmup_steps": warmup_steps}
