"""The parts of a Transformer that are ways to compute it faster; tests/test_numerics.py has the mathematics."""

import pytest
import torch

from pipeline.models.transformer_layers import Dropout, positions_in_rows, rows_block_mask, rows_mask, to_bias


def test_positions_begin_anew_in_each_row():
    assert positions_in_rows(torch.tensor([[0, 0, 0, 1, 2, 2, 5]])).tolist() == [[0, 1, 2, 0, 0, 1, 0]]


@pytest.mark.parametrize("is_causal", [False, True])
def test_rows_are_masked_from_each_other(is_causal):
    rows = torch.tensor([[0, 0, 1, 1, 1]])
    mask = rows_mask(rows, rows, torch.float32, is_causal)
    one, other = (torch.ones(size, size).bool() for size in (2, 3))
    expected = torch.block_diag(*((block.tril() if is_causal else block) for block in (one, other))).bool()
    assert isinstance(mask, torch.Tensor)
    assert torch.equal(mask, to_bias(expected, torch.float32)[None, None])
    assert mask.max() == 0 and mask.min() == torch.finfo(torch.float32).min


def test_blocks_of_packed_rows_are_those_where_rows_meet():
    """The flex mask, spelled out place by place, is the dense one, and leaves blocks out."""
    torch.manual_seed(0)
    sides = []
    for _ in range(2):
        lengths = torch.randint(1, 90, (14,))
        lengths[-1] += -lengths.sum() % 128
        sides.append(torch.arange(14).repeat_interleave(lengths))
    target, source = sides
    for keys, is_causal in ((target, True), (source, False)):
        mask = rows_block_mask(target, keys, is_causal)
        dense = rows_mask(target[None], keys[None], torch.float32, is_causal)
        assert isinstance(dense, torch.Tensor)
        q, k = torch.meshgrid(torch.arange(len(target)), torch.arange(len(keys)), indexing="ij")
        blocks = mask.to_dense()[0, 0].bool().repeat_interleave(128, 0).repeat_interleave(128, 1)
        zero = torch.tensor(0)
        assert torch.equal(mask.mask_mod(zero, zero, q, k) & blocks, dense[0, 0].eq(0))
        assert not blocks.all()


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout(p):
    torch.manual_seed(0)
    states = torch.ones(1000, 1001, requires_grad=True)
    layer = Dropout(p)
    output = layer(states)
    kept = output != 0
    # The deviation of the share is sqrt(p (1 - p) / 1e6), 0.0003 or 0.0005.
    assert kept.float().mean().item() == pytest.approx(1 - p, abs=0.003)
    torch.testing.assert_close(output[kept].unique(), torch.tensor([1 / (1 - p)]), rtol=1e-4, atol=0)
    neighbours = (kept[:, :-1] & kept[:, 1:]).float().mean().item()
    assert neighbours == pytest.approx((1 - p) ** 2, abs=0.004), "independent"
    output.sum().backward()
    assert states.grad is not None and torch.equal(states.grad, output)
    assert not torch.equal(layer(states), output)
    torch.manual_seed(0)
    assert torch.equal(layer(states), output)
    assert layer.eval()(states) is states or torch.equal(layer(states), states)
