"""Output projection and cross-entropy in one, without the logits of a whole batch.

Shapes: N tokens, D width, V vocabulary.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Numbers in a slice of the logits: on a CPU the 32 MiB of a large cache, elsewhere what keeps the device busy.
SLICE_NUMBERS = {"cpu": 1 << 23}
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
    count, vocabulary = len(labels), len(weight)
    total = torch.zeros((), device=hidden.device)
    correct = torch.empty_like(labels, dtype=torch.bool)
    hidden_gradient = torch.empty_like(hidden)
    weight_gradient = torch.zeros_like(weight if needs_gradient else weight[:0])
    uniform = label_smoothing / vocabulary  # what smoothing makes of every logit's target, the same for all tokens
    weight_sum, hidden_sum = cast.float().sum(0), hidden.float().sum(0)  # (D)
    buffer = torch.empty(min(rows, count), vocabulary, device=hidden.device, dtype=cast.dtype)
    for start in range(0, count, rows):
        rows_of_slice = slice(start, start + rows)
        states, targets = hidden[rows_of_slice].to(cast.dtype), labels[rows_of_slice, None]
        logits = torch.mm(states, cast.T, out=buffer[: len(states)]).float()  # (n, V)
        highest, target_logits = logits.amax(-1, keepdim=True), logits.gather(1, targets)
        correct[rows_of_slice] = (target_logits >= highest).squeeze(1)
        slopes = torch.softmax(logits, -1, out=logits)  # softmax - target distribution, but for its uniform part
        # loss = logsumexp(logits) - target logit, where logsumexp = highest logit - log(highest probability).
        # Smoothing s gives the target 1 - s, and every token of the vocabulary `uniform` = s / V more. That subtracts
        # `uniform` times the sum of all logits from the loss, and `uniform` from every slope: below, for all slices.
        total += (highest - slopes.amax(-1, keepdim=True).log() - (1 - label_smoothing) * target_logits).sum()
        if not needs_gradient:
            continue
        slopes.scatter_add_(1, targets, torch.full_like(target_logits, label_smoothing - 1))
        slopes = slopes.to(cast.dtype)
        hidden_gradient[rows_of_slice] = slopes @ cast
        if cast.dtype == weight.dtype:
            weight_gradient.addmm_(slopes.T, states)
        else:
            weight_gradient += slopes.T @ states
    if label_smoothing:
        total -= uniform * (hidden_sum @ weight_sum)  # the sum of all logits
    if needs_gradient:
        if label_smoothing:
            hidden_gradient -= uniform * weight_sum
            weight_gradient -= uniform * hidden_sum
        ctx.save_for_backward(hidden_gradient, weight_gradient)
    ctx.mark_non_differentiable(correct)
    return total, correct


@torch.compiler.disable  # the number of labels is another in each batch, and the slices would be compiled for each
def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, ignore_index: int = -100, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Sum the cross-entropy of the labels in nats, and tell which of them are the most probable token.

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
