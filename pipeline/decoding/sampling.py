"""Sampling in which a row's random numbers are its own, whatever rows share its batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class SeededDraws(TorchFunctionMode):
    """Within it `torch.multinomial`, by which `generate` samples, draws by the random numbers of each row.

    They follow from the seed, the number of the row, and the number of the answer among those to the row; each draw
    takes the next of them. So an answer is the same in any batch and on any process, as far as its probabilities are.
    Those of another batch differ by rounding, which can change a draw: as it is the race of `draw`, so often as the
    probabilities differ, some 1e-6 in float32. It draws from what `generate` hands over, so after all that warps the
    distribution: a logits processor of `generate` would come before that.

    https://docs.pytorch.org/docs/stable/torch.overrides.html

    Args:
        seed: not negative.
        rows: their numbers, in the order of the batch.
    """

    def __init__(self, seed: int, rows: Sequence[int]):
        super().__init__()
        self.seed, self.rows = seed, rows
        self.generators: list[np.random.Generator] = []  # of each row of probabilities

    @property
    def is_used(self) -> bool:
        """Whether anything was drawn."""
        return bool(self.generators)

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        if func in (torch.multinomial, Tensor.multinomial):
            return self.draw(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def draw(self, probabilities: Tensor, num_samples: int) -> Tensor:
        """Draw without replacement from `probabilities` (rows * answers, V): indices (rows * answers, num_samples).

        Exponential variables with the probabilities as their rates end in the order of such draws (the Gumbel-top-k
        trick, Kool et al. 2019, https://arxiv.org/abs/1903.06059). Drawn by a distribution function, by one number
        instead of V, rounding would decide as often as there are tokens to choose from.

        Raises:
            RuntimeError: for probabilities that are not finite, as torch's own.
        """
        if not bool(probabilities.sum().isfinite()):
            raise RuntimeError("probability tensor contains either `inf`, `nan` or element < 0")
        if not self.generators:
            answers = len(probabilities) // len(self.rows)
            self.generators = [
                np.random.default_rng((self.seed, row, number)) for row in self.rows for number in range(answers)
            ]
        exponentials = np.empty(probabilities.shape)  # float64, as too many of float32 would be 0
        for generator, row in zip(self.generators, exponentials, strict=True):
            generator.standard_exponential(out=row)
        times = torch.from_numpy(exponentials).to(probabilities.device) / probabilities.double()
        return times.topk(num_samples, largest=False).indices  # where fewer have any probability, others, as in torch
