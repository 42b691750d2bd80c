"""Sampling in which a row's random numbers are its own, whatever rows share its batch."""

from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

FEWEST = 1e-300  # beside the probability of any token it is nothing


class SeededDraws(TorchFunctionMode):
    """Within it `torch.multinomial`, by which `generate` samples, draws by the random numbers of each row.

    They follow from the seed, the number of the row, and the number of the answer among those to the row: each draw
    takes the next of them. So an answer is the same in any batch and on any process, as far as the probabilities are:
    those of another batch differ by rounding, which changes about one draw in a million in float32.

    It draws from what `generate` asks for, so after all that warps the distribution. Draws without replacement, as of
    beams, are made one after the other from what is left. https://docs.pytorch.org/docs/stable/notes/extending.html

    Attributes:
        is_used: whether anything was drawn.
    """

    def __init__(self, seed: int, rows: Sequence[int]):
        super().__init__()
        self.seed, self.rows = seed, rows
        self.numbers: list[Random] = []  # of each row of probabilities

    @property
    def is_used(self) -> bool:
        return bool(self.numbers)

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        if func in (torch.multinomial, Tensor.multinomial):
            return self.draw(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def draw(self, probabilities: Tensor, num_samples: int) -> Tensor:
        """Draw without replacement from `probabilities` (rows * answers, V): indices (rows * answers, samples).

        Raises:
            RuntimeError: for probabilities that are not finite, as torch's own.
        """
        if not self.numbers:
            answers = len(probabilities) // len(self.rows)
            # Of text, as Python promises to make the same numbers of it in later versions.
            self.numbers = [Random(f"{self.seed} {row} {number}") for row in self.rows for number in range(answers)]
        remaining = probabilities.double() + FEWEST  # so that others are drawn where fewer than `num_samples` have any
        drawn = []
        for _ in range(num_samples):
            shares = torch.tensor([[numbers.random()] for numbers in self.numbers], dtype=torch.float64)
            ends = remaining.cumsum(-1)
            total = ends[:, -1:]
            if not bool(total.isfinite().all()):
                raise RuntimeError("probability tensor contains either `inf`, `nan` or element < 0")
            index = torch.searchsorted(ends, shares.to(ends.device) * total, right=True)  # (rows * answers, 1)
            remaining = remaining.scatter(1, index, 0.0)
            drawn.append(index)
        return torch.cat(drawn, 1)
