import importlib.util

import pytest
import torch
from torch.nn import functional

from pipeline.models import linear_cross_entropy as module
from pipeline.models.linear_cross_entropy import head_cross_entropy, head_r_drop_loss, linear_cross_entropy

ROWS, WIDTH, VOCABULARY = 11, 6, 17


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, WIDTH, generator=generator)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator)
    return hidden, weight, torch.randint(0, VOCABULARY, (ROWS,), generator=generator)


@pytest.fixture(
    params=[(1, 1), (3 * VOCABULARY, 1000), (1000, 1000), (3 * VOCABULARY, 2 * VOCABULARY), (1000, 2 * VOCABULARY)],
    ids=["a row each", "three rows each", "one slice", "parts of three rows", "parts of one slice"],
)
def slices(request, monkeypatch):
    monkeypatch.setitem(module.SLICE_NUMBERS, "cpu", request.param[0])
    monkeypatch.setattr(module, "PART_NUMBERS", request.param[1])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradients_are_torchs(inputs, slices, smoothing):
    *tensors, labels = inputs
    ours = [tensor.clone().requires_grad_() for tensor in tensors]
    theirs = [tensor.clone().requires_grad_() for tensor in tensors]
    hidden, weight = ours
    total, correct = linear_cross_entropy(hidden, weight, labels, label_smoothing=smoothing)
    logits = functional.linear(*theirs)
    expected = functional.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum")
    torch.testing.assert_close(total, expected)
    assert torch.equal(correct, logits.argmax(-1).eq(labels))
    (total / 3).backward()  # as a mean would have it
    (expected / 3).backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_ignored_labels(inputs):
    hidden, weight, labels = inputs
    labels[3:6] = -100
    total, correct = linear_cross_entropy(hidden[None], weight, labels[None])
    torch.testing.assert_close(total, functional.cross_entropy(hidden @ weight.T, labels, reduction="sum"))
    assert torch.equal(correct, (hidden @ weight.T).argmax(-1).eq(labels)[None])


def test_without_gradients(inputs, slices):
    hidden, weight, labels = inputs
    total, _ = linear_cross_entropy(hidden, weight, labels)
    assert not total.requires_grad
    torch.testing.assert_close(total, functional.cross_entropy(hidden @ weight.T, labels, reduction="sum"))


@pytest.mark.parametrize("name", ["transformers_modules.я.0f-1.linear_cross_entropy", "transformers_modules.ю.x"])
def test_copies_of_the_code_do_not_share_their_operators(inputs, name):
    """As a checkpoint's code is loaded beside this one, and once more when it changes."""
    hidden, weight, labels = inputs
    spec = importlib.util.spec_from_file_location(name, module.__file__)
    assert spec is not None and spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    for _ in range(2):
        spec.loader.exec_module(copy)
        gradients = []
        for function in (copy.linear_cross_entropy, linear_cross_entropy):
            leaf = weight.clone().requires_grad_()
            function(hidden, leaf, labels)[0].backward()
            gradients.append(leaf.grad)
        assert copy.NAMESPACE != module.NAMESPACE and torch.equal(*gradients)


def test_no_label_at_all(inputs):
    hidden, weight, labels = inputs
    weight.requires_grad_()
    total, correct = linear_cross_entropy(hidden[:0], weight, labels[:0])
    total.backward()
    assert total == 0 and correct.shape == (0,) and not weight.grad.any()


def test_autocast_is_as_near_as_bf16_allows():
    exact = torch.randn(64, 32, generator=torch.Generator().manual_seed(1))
    weight = torch.randn(50, 32, generator=torch.Generator().manual_seed(2)).requires_grad_()
    labels = torch.arange(64) % 50
    states = exact.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = linear_cross_entropy(states, weight, labels)
    total.backward()
    assert states.grad is not None and weight.grad is not None
    assert total.dtype == states.grad.dtype == weight.grad.dtype == torch.float32
    reference = exact.clone().requires_grad_()
    expected = functional.cross_entropy(reference @ weight.detach().T, labels, reduction="sum")
    expected.backward()
    torch.testing.assert_close(total, expected, rtol=0.01, atol=0)
    torch.testing.assert_close(states.grad, reference.grad, rtol=0.05, atol=0.05)


def test_what_is_kept_is_no_logits(inputs, monkeypatch):
    hidden, weight, labels = inputs
    monkeypatch.setitem(module.SLICE_NUMBERS, "cpu", VOCABULARY)
    shapes = []

    def keep(tensor):
        shapes.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        linear_cross_entropy(hidden.requires_grad_(), weight, labels)
    assert {tuple(shape) for shape in shapes} == {(ROWS, WIDTH), (VOCABULARY, WIDTH)}


@pytest.mark.parametrize("transform", ["grad", "jacrev", "jacfwd", "hessian"])
def test_transforms_of_functions(inputs, transform):
    hidden, weight, labels = inputs
    head = torch.nn.Linear(WIDTH, VOCABULARY, bias=False)
    head.weight = torch.nn.Parameter(weight)
    derivative = getattr(torch.func, transform)
    torch.testing.assert_close(
        derivative(lambda states: head_cross_entropy(states, head, labels, label_smoothing=0.1)[0])(hidden),
        derivative(
            lambda states: functional.cross_entropy(states @ weight.T, labels, label_smoothing=0.1, reduction="sum")
        )(hidden),
    )


def test_no_second_derivatives(inputs):
    hidden, weight, labels = inputs
    total, _ = linear_cross_entropy(hidden.requires_grad_(), weight, labels)
    with pytest.raises(RuntimeError, match="call the model without labels"):
        torch.autograd.grad(total, hidden, create_graph=True)


def test_backward_again_gives_the_same(inputs):
    hidden, weight, labels = inputs
    total, _ = linear_cross_entropy(hidden.requires_grad_(), weight.requires_grad_(), labels)
    both = (hidden, weight)
    first = [gradient.clone() for gradient in torch.autograd.grad(3 * total, both, retain_graph=True)]
    again = torch.autograd.grad(3 * total, both, retain_graph=True)
    last = torch.autograd.grad(3 * total, both)
    torch.testing.assert_close([*again], first, rtol=0, atol=0)
    torch.testing.assert_close([*last], first, rtol=0, atol=0)


def test_forward_derivatives(inputs):
    hidden, weight, labels = inputs
    head = torch.nn.Linear(WIDTH, VOCABULARY, bias=False)
    head.weight = torch.nn.Parameter(weight, requires_grad=False)
    tangent = torch.ones_like(hidden)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(hidden, tangent)
        total, _ = head_cross_entropy(dual, head, labels)
        derivative = torch.autograd.forward_ad.unpack_dual(total).tangent
    total, _ = linear_cross_entropy(hidden.requires_grad_(), weight, labels)
    torch.testing.assert_close(derivative, torch.autograd.grad(total, hidden)[0].sum())


def r_drop_by_hand(logits, labels, alpha, smoothing):
    """Half of equation 4 of the paper, by torch's own functions, summed over the labels that count; and its last part.

    The logits are (2 * N, V), the second pass behind the first.
    """
    first, second = logits[labels.ne(-100).repeat(2)].log_softmax(-1).chunk(2)
    entropies = functional.cross_entropy(logits, labels.repeat(2), label_smoothing=smoothing, reduction="sum")
    divergence = functional.kl_div(first, second, reduction="sum", log_target=True)
    divergence = (divergence + functional.kl_div(second, first, reduction="sum", log_target=True)) / 2
    return (entropies + alpha * divergence) / 2, divergence


@pytest.mark.parametrize("head_class", [torch.nn.Linear, type("OtherLinear", (torch.nn.Linear,), {})])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_r_drop_and_its_gradients_are_the_papers(inputs, slices, smoothing, head_class):
    hidden, weight, labels = inputs
    labels[3:6] = -100
    results = []
    for by_hand in (False, True):
        states = torch.stack((hidden, hidden + 0.3 * hidden.roll(1, 0))).requires_grad_()  # (2, N, D)
        head = head_class(WIDTH, VOCABULARY, bias=False)
        head.weight = torch.nn.Parameter(weight.clone())
        if by_hand:
            logits = head(states).flatten(0, 1)
            total, divergence = r_drop_by_hand(logits, labels, 5.0, smoothing)
            correct = (logits[:ROWS].argmax(-1) == labels)[None]
        else:
            total, correct, divergence = head_r_drop_loss(states, head, labels[None], 5.0, label_smoothing=smoothing)
            assert not divergence.requires_grad
        (total / 3).backward()
        results.append((total.detach(), divergence.detach(), correct, states.grad, head.weight.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_r_drop_of_equal_passes_is_the_cross_entropy(inputs):
    hidden, weight, labels = inputs
    head = torch.nn.Linear(WIDTH, VOCABULARY, bias=False)
    head.weight = torch.nn.Parameter(weight)
    total, correct, divergence = head_r_drop_loss(hidden.repeat(2, 1), head, labels, 5.0)
    expected, expected_correct = head_cross_entropy(hidden, head, labels)
    torch.testing.assert_close(total, expected)
    assert torch.equal(correct, expected_correct) and divergence.abs() < 1e-6


def test_r_drop_keeps_no_logits(inputs, monkeypatch):
    hidden, weight, labels = inputs
    monkeypatch.setitem(module.SLICE_NUMBERS, "cpu", VOCABULARY)
    head = torch.nn.Linear(WIDTH, VOCABULARY, bias=False)
    head.weight = torch.nn.Parameter(weight)
    shapes = []

    def keep(tensor):
        shapes.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        head_r_drop_loss(hidden.repeat(2, 1).requires_grad_(), head, labels, 5.0)
    assert {*shapes} == {(2 * ROWS, WIDTH), (VOCABULARY, WIDTH)}


def test_r_drop_under_autocast_is_as_near_as_bf16_allows():
    generator = torch.Generator().manual_seed(1)
    exact, weight = torch.randn(128, 32, generator=generator), torch.randn(50, 32, generator=generator)
    labels = torch.arange(64) % 50
    results = []
    for is_mixed in (True, False):
        states, head = exact.clone().requires_grad_(), torch.nn.Linear(32, 50, bias=False)
        head.weight = torch.nn.Parameter(weight.clone())
        with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
            total, _, divergence = head_r_drop_loss(states, head, labels, 1.0, label_smoothing=0.1)
        total.backward()
        assert total.dtype == divergence.dtype == torch.float32
        results.append((total.detach(), divergence, states.grad, head.weight.grad))
    for mixed, plain in zip(*results, strict=True):
        assert (mixed - plain).norm() < 0.02 * plain.norm()
