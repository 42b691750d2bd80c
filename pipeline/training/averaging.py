"""Averages of weights: over the steps of a training, and over checkpoints."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pipeline.errors import ConfigError, RunError
from pipeline.manifest import damage
from pipeline.training.checkpoints import WEIGHTS_FILE


class MovingAverage:
    """The exponential moving average of a model's weights, which lags behind a training and is steadier than it.

        average <- d average + (1 - d) weights,   d = min(decay, (1 + t) / (10 + t))   after step t

    To average the iterates of a stochastic optimizer is due to Polyak and Juditsky 1992
    (https://doi.org/10.1137/0330046). This form, whose decay grows from 0.18 so that the first weights are soon
    forgotten, is that of TensorFlow's `ExponentialMovingAverage` with `num_updates`, and Marian's
    `exponential-smoothing` (Junczys-Dowmunt et al. 2018, https://arxiv.org/abs/1804.00344). Tan and Le 2019
    (https://arxiv.org/abs/1905.11946) evaluate such averages.

    The step is the only thing that is counted, and the trainer counts it anyway, so that weights and averages are all
    there is to save. Weights that are not trained are their own average.

    Args:
        model: whose weights the average begins with.
        decay: between 0 and 1; about the last 1 / (1 - decay) steps count.

    Raises:
        ConfigError: for weights in 16 bits, where a small share of a difference is rounded to nothing.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        for name, weight in trained.items():
            if torch.finfo(weight.dtype).bits < 32:
                raise ConfigError(
                    f"training.ema_decay: {name} is in {str(weight.dtype).removeprefix('torch.')}, in which an average "
                    "stands still; begin with a model in float32, or leave ema_decay out"
                )
        self.names = [*trained]
        self.weights = [*trained.values()]
        self.averages = [weight.detach().clone() for weight in self.weights]

    def update(self, step: int) -> None:
        """Take the weights after a step, counted from 1, into the average; the CPU waits for nothing."""
        get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))(self.averages, self.weights, step)

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
