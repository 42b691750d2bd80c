"""Weights in the order in which a CPU's matrix products read them, for as long as a search takes."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

TYPES = (torch.float32, torch.bfloat16)
# oneDNN makes a program for each number of rows, which takes longer than to run it: products have multiples of these.
STEP = 32


@contextmanager
def packed_weights(module: nn.Module, rows: int) -> Iterator[None]:
    """Let the linear maps of a module on a CPU read weights that oneDNN has packed, meanwhile.

    `nn.Linear` packs its weights anew in each product, which takes up to half of its time where there are few rows.
    What it gives is the same but for rounding. The functions are those that a model frozen by torch.compile calls:
    https://github.com/pytorch/pytorch/blob/v2.9.0/torch/_inductor/fx_passes/mkldnn_fusion.py

    Args:
        rows: that a product has about.
    """
    with ExitStack() as stack:
        for linear in module.modules():
            # Not one that a library has changed: its forward, or where its weights lie.
            if type(linear) is nn.Linear and "forward" not in vars(linear) and _can_be_packed(linear.weight):
                weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)
                linear.forward = partial(_product, linear, weight, 2 * rows)  # type: ignore[method-assign]
                stack.callback(delattr, linear, "forward")
        yield


def _can_be_packed(weight: Tensor) -> bool:
    return (
        type(weight.data) is Tensor
        and weight.device.type == "cpu"
        and weight.dtype in TYPES
        and torch.backends.mkldnn.is_available()
    )


def _product(linear: nn.Linear, weight: Tensor, most_rows: int, states: Tensor) -> Tensor:
    """Compute what `linear` does, by its packed weight where there are not too many rows."""
    rows = states.numel() // linear.in_features
    if rows > most_rows:
        return nn.functional.linear(states, linear.weight, linear.bias)
    padded = nn.functional.pad(states.reshape(rows, -1), (0, 0, 0, -rows % STEP))
    products = torch.ops.mkldnn._linear_pointwise(padded, weight, linear.bias, "none", [], "")
    return products[:rows].view(*states.shape[:-1], -1)
