"""Learning-rate schedules that transformers lacks, and how a schedule goes on in a run that is taken up."""

import inspect
from collections.abc import Collection
from typing import Any

from torch.optim.lr_scheduler import LambdaLR


def noam(d_model: int, warmup_steps: int, factor: float = 1.0) -> dict[str, Any]:
    """Return training arguments for the schedule of the Transformer paper.

        lr(step) = factor * d_model^-0.5 * min(step^-0.5, step * warmup_steps^-1.5)

    That is transformers' `inverse_sqrt`, which rises linearly to its learning rate and then falls as
    sqrt(warmup_steps / step), with the learning rate at the paper's peak.

    Source: Vaswani et al. 2017, equation 3.
    """
    peak = factor * (d_model * warmup_steps) ** -0.5
    return {"lr_scheduler_type": "inverse_sqrt", "learning_rate": peak, "warmup_steps": warmup_steps}


def go_on(
    schedule: Any, groups: list[dict[str, Any]], saved: dict[str, Any], step: int, changes: Collection[str]
) -> None:
    """Put a new schedule, and the learning rates of its optimizer, where a checkpoint was.

    Most schedules are functions of the arguments and the step, so a checkpoint only has the step. Those that follow the
    scores go on with what they have counted.

    Args:
        schedule: one of transformers' or torch's, made of the arguments.
        groups: of the optimizer's parameters, with the learning rates to go on with where they follow the scores.
        saved: the state of the checkpoint's schedule.
        step: of the checkpoint.
        changes: keys of the config that changed since.
    """
    new = schedule.state_dict()
    if isinstance(schedule, LambdaLR):
        step = saved["last_epoch"] if "lr_lambdas" in saved else step  # steps that fp16 skipped do not count
        rates = [base * factor(step) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
        schedule.load_state_dict({**new, "last_epoch": step, "_step_count": step + 1, "_last_lr": rates})
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
    elif "training.lr_scheduler_type" not in changes:
        settings = {*inspect.signature(type(schedule)).parameters, "min_lrs"}
        schedule.load_state_dict(saved | {name: value for name, value in new.items() if name in settings})
