import pytest
import torch
from torch import nn

from pipeline.decoding.packing import packed_weights


class Changed(nn.Linear):
    pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_weights_give_the_same_and_are_gone_afterwards(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24), nn.Linear(24, 5, bias=False)).to(dtype)
    states = torch.randn(3, 2, 16).to(dtype)
    with torch.no_grad():
        expected = model(states)
        with packed_weights(model, rows=8):
            assert all("forward" in vars(linear) for linear in model), "else nothing is tested"
            torch.testing.assert_close(model(states), expected)
    assert not any("forward" in vars(linear) for linear in model)


def test_what_a_library_has_changed_stays_as_it_is():
    model = nn.Sequential(Changed(4, 4), nn.Linear(4, 4), nn.Linear(4, 4).to(torch.float16), nn.Linear(4, 4))
    model[1].forward = forward = lambda states: states + 1
    with packed_weights(model, rows=8):
        assert ["forward" in vars(linear) for linear in model] == [False, True, False, True]
        assert model[1].forward is forward
    assert model[1].forward is forward and "forward" not in vars(model[3])
