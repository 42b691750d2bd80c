"""Output projection and cross-entropy in one, without the logits of a whole batch; with R-Drop where it is asked for.

Shapes: N tokens, D width, V vocabulary.

R-Drop (Liang et al. 2021, https://arxiv.org/abs/2106.14448) takes each batch through the model twice, with other masks
of dropout, and adds to the loss how far the two distributions P and Q of each token are apart. Here it is half of the
paper's equation 4, so that ALPHA is the paper's and the rest is the mean of both cross-entropies:

    (CE(P) + CE(Q)) / 2  +  ALPHA / 2 * divergence        divergence = (KL(P, Q) + KL(Q, P)) / 2
"""

import re
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

# Numbers in a slice of the logits: on a CPU few, to save memory, elsewhere what keeps the device busy.
SLICE_NUMBERS = {"cpu": 1 << 22}
SLICE_NUMBERS_ELSEWHERE = 1 << 26
# On a CPU what is computed of each logit alone goes over so many at a time, which a core's own cache holds in float32.
PART_NUMBERS = 1 << 20


# Code that is loaded from a checkpoint has a name of its own, and registers an operator of its own.
NAMESPACE = re.sub(r"\W", "_", ascii(__name__)[1:-1])


@torch.library.custom_op(f"{NAMESPACE}::linear_cross_entropy", mutates_args=())
def _loss_and_gradients(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    ignore_index: int,
    label_smoothing: float,
    dtype: torch.dtype,
    needs_gradient: bool,
    alpha: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute the summed loss of `cross_entropy(linear(hidden, weight), labels)` and its gradients, slice by slice.

    This goes as far as the gradients, as the logits of a slice are at hand then, so that nothing is computed twice:
    three matrix products, as without slices. What is kept is (N, D) and (V, D), never (N, V).

    An operator of its own, a compiler need not look into it: how many of the labels count is another number in each
    batch.

    Args:
        hidden: (N, D). weight: (V, D). labels: (N).
        dtype: of the products, everything else is in float32.
        alpha: where it is not 0, the second half of hidden and labels is the second pass of the first half, and
            `alpha` times the divergence of the two is added to the loss.

    Returns:
        The loss (), whether each label is the most probable token (N), the gradients of hidden and weight, empty
        unless `needs_gradient`, and the summed divergence ().
    """
    if alpha:  # the two passes of a token next to each other
        half = len(labels) // 2
        first = labels[:half].ne(ignore_index).nonzero()
        places = torch.cat((first, first + half), 1).flatten()
    else:
        places = labels.ne(ignore_index).nonzero().squeeze(1)
    with torch.autocast(hidden.device.type, enabled=False):
        total, right, slopes, weight_gradient, divergence = _slices(
            hidden[places], weight, weight.to(dtype), labels[places], label_smoothing, needs_gradient, alpha
        )
    correct = torch.zeros_like(labels, dtype=torch.bool)
    correct[places] = right
    hidden_gradient = torch.zeros_like(hidden if needs_gradient else hidden[:0])
    if needs_gradient:
        hidden_gradient[places] = slopes
    return total, correct, hidden_gradient, weight_gradient, divergence


@_loss_and_gradients.register_fake
def _(hidden, weight, labels, ignore_index, label_smoothing, dtype, needs_gradient, alpha):
    rows = slice(None) if needs_gradient else slice(0)
    total, correct = hidden.new_empty((), dtype=torch.float32), torch.empty_like(labels, dtype=torch.bool)
    return total, correct, torch.empty_like(hidden[rows]), torch.empty_like(weight[rows]), torch.empty_like(total)


def _save_gradients(ctx, inputs, output) -> None:
    ctx.set_materialize_grads(False)  # or autograd makes zeros, as large as the weight, for outputs without a gradient
    ctx.save_for_backward(*output[2:4])


def _backward(ctx, gradient: Tensor, *_):
    if torch.is_grad_enabled():  # of `create_graph=True`
        raise RuntimeError(
            "the loss of training is computed together with its gradients, and they cannot be differentiated again: "
            "call the model without labels and compute the loss of its logits"
        )
    if gradient is None:
        return (None,) * 8
    gradients = ctx.saved_tensors
    if torch.compiler.is_compiling() or torch._C._autograd._get_current_graph_task_keep_graph():  # `retain_graph`
        return *(each * gradient for each in gradients), *(None,) * 6
    # In place, as nobody asks for them again: a copy as large as the weight would add to the peak of a step.
    return *(each.mul_(gradient) for each in gradients), *(None,) * 6


_loss_and_gradients.register_autograd(_backward, setup_context=_save_gradients)


def _slices(
    hidden: Tensor,
    weight: Tensor,
    cast: Tensor,
    labels: Tensor,
    label_smoothing: float,
    needs_gradient: bool,
    alpha: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    count, vocabulary = len(labels), len(weight)
    step = 2 if alpha else 1  # rows that stay together
    rows = max(1, SLICE_NUMBERS.get(hidden.device.type, SLICE_NUMBERS_ELSEWHERE) // vocabulary // step) * step
    rows_of_part = max(1, PART_NUMBERS // vocabulary // step) * step if hidden.device.type == "cpu" else rows
    total, divergence = torch.zeros((), device=hidden.device), torch.zeros((), device=hidden.device)
    correct = torch.empty_like(labels, dtype=torch.bool)
    hidden_gradient = torch.empty_like(hidden if needs_gradient else hidden[:0])
    weight_gradient = torch.zeros_like(weight if needs_gradient else weight[:0])
    uniform = label_smoothing / vocabulary  # what smoothing makes of every logit's target, the same for all tokens
    weight_sum, hidden_sum = cast.sum(0, dtype=torch.float32), hidden.sum(0, dtype=torch.float32)  # (D)
    buffer = torch.empty(min(rows, count), vocabulary, device=hidden.device, dtype=cast.dtype)
    for start in range(0, count, rows):
        states, targets = hidden[start : start + rows].to(cast.dtype), labels[start : start + rows, None]
        slopes = torch.mm(states, cast.T, out=buffer[: len(states)])  # (n, V), logits at first
        for first in range(0, len(states), rows_of_part):
            part = slice(first, first + rows_of_part)
            if alpha:
                losses, right, distance = _to_slopes_of_pairs(slopes[part], targets[part], label_smoothing, alpha)
                divergence += distance
            else:
                losses, right = _to_slopes(slopes[part], targets[part], label_smoothing)
            total += losses
            correct[start + first : start + first + len(right)] = right
        if not needs_gradient:
            continue
        hidden_gradient[start : start + rows] = slopes @ cast
        if cast.dtype == weight.dtype:
            weight_gradient.addmm_(slopes.T, states)
        else:
            weight_gradient += slopes.T @ states
    if label_smoothing:
        total -= uniform * (hidden_sum @ weight_sum)  # the sum of all logits
        if needs_gradient:
            hidden_gradient -= uniform * weight_sum
            weight_gradient -= uniform * hidden_sum
    if alpha:
        total += alpha * divergence
    return total, correct, hidden_gradient, weight_gradient, divergence


def _to_slopes(logits: Tensor, targets: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """Put the slopes of the loss in the place of some rows of logits (n, V); computed in float32.

    loss = logsumexp(logits) - target logit, where logsumexp = highest logit - log(highest probability), and its slope
    is softmax - target distribution. Smoothing s gives the target 1 - s, and every token of the vocabulary `uniform` =
    s / V more. That subtracts `uniform` times the sum of all logits from the loss, and `uniform` from every slope:
    `_slices` does so once for all rows.

    Returns:
        The sum of their losses, and whether each target (n, 1) has the highest logit (n).
    """
    numbers = logits.float()
    highest, target_logits = numbers.amax(-1, keepdim=True), numbers.gather(1, targets)
    torch.softmax(numbers, -1, out=numbers)
    losses = highest - numbers.amax(-1, keepdim=True).log() - (1 - label_smoothing) * target_logits
    numbers.scatter_add_(1, targets, torch.full_like(target_logits, label_smoothing - 1))
    if numbers is not logits:
        logits.copy_(numbers)
    return losses.sum(), (target_logits >= highest).squeeze(1)


def _to_slopes_of_pairs(
    logits: Tensor, targets: Tensor, label_smoothing: float, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Do the same of rows (2n, V) of which each two are the passes of a token, with `alpha` times their divergence.

    With gap = log P - log Q, the slope of KL(P, Q) + KL(Q, P) is P * (gap - KL(P, Q)) + P - Q for the logits of P, and
    the same with P and Q exchanged for those of Q.

    Returns:
        The sum of their cross-entropies, whether each target (2n, 1) has the highest logit (2n), and the sum of their
        divergences.
    """
    numbers = logits.float()
    highest, target_logits = numbers.amax(-1, keepdim=True), numbers.gather(1, targets)
    numbers = numbers.log_softmax(-1)
    losses = label_smoothing * target_logits - numbers.gather(1, targets)
    gap = numbers[::2] - numbers[1::2]  # (n, V)
    slopes = numbers.exp_()
    first, second = slopes[::2], slopes[1::2]
    difference = first - second
    forwards, backwards = (first * gap).sum(-1, keepdim=True), -(second * gap).sum(-1, keepdim=True)
    half = alpha / 2
    first.mul_((gap - forwards).mul_(half).add_(1)).add_(difference, alpha=half)
    second.mul_((-gap - backwards).mul_(half).add_(1)).sub_(difference, alpha=half)
    slopes.scatter_add_(1, targets, torch.full_like(target_logits, label_smoothing - 1))
    logits.copy_(slopes)
    return losses.sum(), (target_logits >= highest).squeeze(1), (forwards + backwards).sum() / 2


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

    Raises:
        RuntimeError: in a backward pass with `create_graph=True`, as there are no second derivatives.
    """
    if _is_transformed():  # the operator knows no derivatives but its gradients
        return cross_entropy(nn.functional.linear(hidden, weight), labels, ignore_index, label_smoothing)
    total, correct, _ = _sum_losses(hidden, weight, labels, ignore_index, label_smoothing)
    return total, correct


def _sum_losses(
    hidden: Tensor, weight: Tensor, labels: Tensor, ignore_index: int, label_smoothing: float, alpha: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Call the operator in the type of the products; as `linear_cross_entropy`, with the summed divergence."""
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    needs_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    total, correct, _, _, divergence = _loss_and_gradients(
        hidden.flatten(0, -2), weight, labels.flatten(), ignore_index, label_smoothing, dtype, needs_gradient, alpha
    )
    return total, correct.view(labels.shape), divergence


def head_cross_entropy(
    hidden: Tensor, head: nn.Module, labels: Tensor, ignore_index: int = -100, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Do the same for `head(hidden)`, whatever module the head is.

    Its logits are left out only where the head is a plain matrix.
    """
    if _multiplies(head, hidden):
        return linear_cross_entropy(hidden, head.weight, labels, ignore_index, label_smoothing)
    logits = head(hidden)  # (..., V)
    return cross_entropy(logits, labels, ignore_index, label_smoothing)


def head_r_drop_loss(
    hidden: Tensor,
    head: nn.Module,
    labels: Tensor,
    alpha: float,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum the loss of R-Drop of `head(hidden)`, whose two passes are the halves of `hidden`.

    Args:
        hidden: (2 * B, ..., D), a second pass behind the first.
        labels: (B, ...), of either pass.
        alpha: weight of the divergence, as in the paper.

    Returns:
        The loss (), a bool for each label (B, ...), whether it is the most probable token of the first pass, and the
        divergence () in nats, summed over the labels and without a gradient.
    """
    if _multiplies(head, hidden) and not _is_transformed():
        both = torch.cat((labels, labels))
        total, correct, divergence = _sum_losses(hidden, head.weight, both, ignore_index, label_smoothing, alpha)
        return total / 2, correct[: len(labels)], divergence.detach()
    return r_drop_loss(head(hidden), labels, alpha, ignore_index, label_smoothing)


def r_drop_loss(
    logits: Tensor, labels: Tensor, alpha: float, ignore_index: int = -100, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Do the same of logits (2 * B, ..., V) that are there."""
    total, correct = cross_entropy(logits, torch.cat((labels, labels)), ignore_index, label_smoothing)
    first, second = logits.float().log_softmax(-1).chunk(2)  # (B, ..., V)
    divergences = ((first.exp() - second.exp()) * (first - second)).sum(-1) / 2
    divergence = divergences.masked_fill(labels == ignore_index, 0).sum()
    return (total + alpha * divergence) / 2, correct[: len(labels)], divergence.detach()


def cross_entropy(
    logits: Tensor, labels: Tensor, ignore_index: int = -100, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Do the same of logits (..., V) that are there."""
    logits, flat = logits.flatten(0, -2).float(), labels.flatten()
    total = nn.functional.cross_entropy(
        logits, flat, ignore_index=ignore_index, reduction="sum", label_smoothing=label_smoothing
    )
    targets = flat.masked_fill(flat == ignore_index, 0)[:, None]
    correct = (logits.gather(1, targets).squeeze(1) >= logits.amax(-1)) & (flat != ignore_index)
    return total, correct.view(labels.shape)


def _multiplies(head: nn.Module, hidden: Tensor) -> TypeGuard[nn.Linear]:
    """Tell whether `head(hidden)` is a product with a matrix, and one that `nn.Linear` would not refuse."""
    mixes = hidden.dtype != getattr(head, "weight", hidden).dtype and not torch.is_autocast_enabled(hidden.device.type)
    return is_plain_linear(head) and not mixes


def is_plain_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Tell whether a call of the module is `linear(states, module.weight)` and nothing else.

    It is not where the module is of another class (adapters, quantised and parametrised layers), has hooks (offloading,
    pruning, debuggers) or a `forward` of its own (accelerate), or where its weight is more than a tensor.
    """
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return (
        type(module) is nn.Linear
        and module.bias is None
        and type(module.weight) in (nn.Parameter, Tensor)
        and "forward" not in vars(module)
        and not any(getattr(module, name) for name in hooks)
        and not nn.modules.module._has_any_global_hook()
    )


def _is_transformed() -> bool:
    """Tell whether this runs inside one of `torch.func`'s transforms, or with derivatives taken forwards."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
