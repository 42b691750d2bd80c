"""Averages of weights: over the steps of a training, and over checkpoints."""

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pipeline.errors import ConfigError, RunError
from pipeline.manifest import damage
from pipeline.training.checkpoints import WEIGHTS_FILE


class MovingAverage:
    """A moving average of a model's weights, which lags behind a training and is steadier than it.

        average <- d average + (1 - d) weights   after each step

    To average the iterates of a stochastic optimizer is due to Polyak and Juditsky 1992
    (https://doi.org/10.1137/0330046). The decay d is `exponential_decay` or `uniform_decay`.

    It depends on what the trainer keeps anyway, the step and the log, so that weights and averages are all there is to
    save. Weights that are not trained are their own average.

    Args:
        model: whose weights the average begins with.
        key: of the config, which asks for the average.

    Raises:
        ConfigError: for weights in 16 bits, where a small share of a difference is rounded to nothing.
    """

    def __init__(self, model: nn.Module, key: str):
        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        for name, weight in trained.items():
            if torch.finfo(weight.dtype).bits < 32:
                raise ConfigError(
                    f"{key}: {name} is in {str(weight.dtype).removeprefix('torch.')}, in which an average stands "
                    "still; begin with a model in float32, or leave it out"
                )
        self.names = [*trained]
        self.weights = [*trained.values()]
        self.averages = [weight.detach().clone() for weight in self.weights]

    def update(self, decay: float) -> None:
        """Take the weights after a step into the average; the CPU waits for nothing."""
        get_ema_multi_avg_fn(decay)(self.averages, self.weights, None)

    def begin_anew(self) -> None:
        """Begin with the weights that the model has now."""
        _copy(self.averages, self.weights)

    def put_into_model(self) -> None:
        """Give the model the averages for good."""
        _copy(self.weights, self.averages)

    @contextmanager
    def in_model(self) -> Iterator[dict[str, Tensor]]:
        """Give the model the averages for a while; yields the weights by name, which the model then has again.

        Values change places and memory stays where it is, as do the graphs and buckets that point to it.
        """
        kept = [weight.detach().clone() for weight in self.weights]
        self.put_into_model()
        try:
            yield dict(zip(self.names, kept, strict=True))
        finally:
            _copy(self.weights, kept)


def exponential_decay(step: int, decay: float) -> float:
    """Return the decay after a step, counted from 1, of an average that forgets.

    It grows from 0.18 so that the first weights are soon forgotten: the form of TensorFlow's `ExponentialMovingAverage`
    with `num_updates`, and of Marian's `exponential-smoothing` (Junczys-Dowmunt et al. 2018,
    https://arxiv.org/abs/1804.00344). Tan and Le 2019 (https://arxiv.org/abs/1905.11946) evaluate such averages.

    Args:
        decay: between 0 and 1; about the last 1 / (1 - decay) steps count.
    """
    return min(decay, (1 + step) / (10 + step))


def uniform_decay(step: int, begin: int | None) -> float:
    """Return the decay after a step, counted from 1, of the plain mean over all steps behind `begin`.

    Up to there, or with None everywhere, the average is the weights.
    """
    steps = 0 if begin is None else step - begin
    return max(steps - 1, 0) / max(steps, 1)


def find_begin(
    log: Sequence[dict[str, Any]], score: str, is_higher_better: bool, patience: int, turns: Collection[int] = ()
) -> int | None:
    """Return the step from which on the weights are averaged; None where it has not come.

    It is the first whose score is worse than the best of those more than `patience` evaluations before it: the
    non-monotonic trigger of Merity et al. 2018, algorithm 1 (https://arxiv.org/abs/1708.02182). A training that still
    goes forward is not held back by its first weights.

    Args:
        log: of the run up to now, from which a run that goes on finds the same.
        score: as the log names it.
        turns: steps from which on the score means something else.
    """
    sign = -1 if is_higher_better else 1
    scores: list[float] = []
    last_step = 0
    for line in log:
        if score not in line:
            continue
        if any(last_step < turn <= line["step"] for turn in turns):
            scores = []
        last_step = line["step"]
        if sign * line[score] > min(scores[: max(len(scores) - patience, 0)], default=math.inf):
            return last_step
        scores.append(sign * line[score])
    return None


@torch.no_grad()
def _copy(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def mean_of_checkpoints(checkpoints: Sequence[Path]) -> dict[str, Tensor]:
    """Return the mean of the weights, as Vaswani et al. 2017, section 6.1, take it of a run's last checkpoints.

    Raises:
        RunError: for a checkpoint that is not whole.
    """
    means: dict[str, Tensor] = {}
    for checkpoint in checkpoints:
        if problem := damage(checkpoint):
            raise RunError(f"{checkpoint} is not a whole checkpoint, so cannot be averaged with others: {problem}")
        for name, tensor in load_file(checkpoint / WEIGHTS_FILE).items():
            means[name] = means.get(name, 0) + tensor.double() / len(checkpoints)
    return {name: mean.float() for name, mean in means.items()}
