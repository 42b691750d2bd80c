"""Output projection and cross-entropy in one, without the logits of a whole batch.

Shapes: N tokens, D width, V vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Numbers in a slice of the logits: on a CPU what its caches hold, elsewhere what keeps the device busy.
SLICE_NUMBERS = {"cpu": 1 << 21}
SLICE_NUMBERS_ELSEWHERE = 1 << 26


class LinearCrossEntropy(torch.autograd.Function):
    """The summed loss of `cross_entropy(linear(hidden, weight), labels)`, and the loss's gradients, slice by slice.

    The forward pass goes as far as the gradients, as the logits of a slice are at hand then, so that nothing is
    computed twice: three matrix products, as without slices. What is kept is (N, D) and (V, D), never (N, V).

    Under autocast the products are made in its type, everything else in float32.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, labels: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
        device = hidden.device.type
        is_autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if is_autocast else weight.dtype
        rows = max(1, SLICE_NUMBERS.get(device, SLICE_NUMBERS_ELSEWHERE) // weight.shape[0])
        with torch.autocast(device, enabled=False):
            return _slices(ctx, hidden, weight, weight.to(dtype), labels, label_smoothing, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, _: Tensor):
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return hidden_gradient * gradient, weight_gradient * gradient, None, None


def _slices(
    ctx, hidden: Tensor, weight: Tensor, cast: Tensor, labels: Tensor, label_smoothing: float, rows: int
) -> tuple[Tensor, Tensor]:
    needs_gradient = any(ctx.needs_input_grad[:2])
    total = torch.zeros((), device=hidden.device)
    correct = torch.empty_like(labels, dtype=torch.bool)
    hidden_gradient = torch.empty_like(hidden)
    weight_gradient = torch.zeros_like(weight if needs_gradient else weight[:0])
    for start in range(0, len(labels), rows):
        part = slice(start, start + rows)
        states, targets = hidden[part].to(cast.dtype), labels[part, None]
        logs = nn.functional.linear(states, cast).float().log_softmax(-1)  # (n, V)
        chosen = logs.gather(1, targets)
        correct[part] = (chosen >= logs.amax(-1, keepdim=True)).squeeze(1)
        total -= (1 - label_smoothing) * chosen.sum()
        if label_smoothing:
            total -= label_smoothing * logs.sum() / logs.shape[1]
        if not needs_gradient:
            continue
        slopes = logs.exp_()  # softmax - target distribution, in the place of the logs
        if label_smoothing:
            slopes -= label_smoothing / logs.shape[1]
        slopes.scatter_add_(1, targets, torch.full_like(chosen, label_smoothing - 1))
        slopes = slopes.to(cast.dtype)
        hidden_gradient[part] = slopes @ cast
        if cast.dtype == weight.dtype:
            weight_gradient.addmm_(slopes.T, states)
        else:
            weight_gradient += slopes.T @ states
    if needs_gradient:
        ctx.save_for_backward(hidden_gradient, weight_gradient)
    ctx.mark_non_differentiable(correct)
    return total, correct


@torch.compiler.disable  # the number of labels is another in each batch, and the slices would be compiled for each
def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, ignore_index: int = -100, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy of the labels in nats, and which of them are the most probable token.

    Equal to `torch.nn.functional.cross_entropy(linear(hidden, weight), labels, reduction="sum")`. That logits need not
    be there all at once is the idea of Wijmans et al. 2024 (https://arxiv.org/abs/2411.09009); gradients in the
    forward pass are Liger's (Hsu et al. 2024, https://arxiv.org/abs/2410.10989).

    Args:
        hidden: (..., D).
        weight: (V, D), of the output projection.
        labels: (...).
        ignore_index: the label that carries no loss, and costs no time.
        label_smoothing: share of the target probability spread over the vocabulary.

    Returns:
        The loss (), and a bool for each label (...), false where it is ignored.
    """
    places = labels.flatten().ne(ignore_index).nonzero().squeeze(1)  # (N)
    total, right = LinearCrossEntropy.apply(
        hidden.flatten(0, -2)[places], weight, labels.flatten()[places], label_smoothing
    )
    correct = torch.zeros_like(labels, dtype=torch.bool)
    correct.view(-1)[places] = right
    return total, correct
