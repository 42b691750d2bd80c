"""Whole copies of a model that FSDP2 shards, on one rank; tests/test_launchers.py has two in a whole run."""

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from pipeline.training.unsharded import gather_parameters, load_into_shards


@pytest.fixture
def shard():
    """Shards a model in place, over a process group of this process alone."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,))

    def make(model):
        for layer in (*model.encoder.layers, *model.decoder.layers):
            fully_shard(layer, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    yield make
    distributed.destroy_process_group()


def assert_equal(model, expected) -> None:
    for name, tensor in model.state_dict().items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        assert torch.equal(whole, expected.state_dict()[name]), name


@pytest.mark.parametrize("tied", [True, False])
def test_a_copy_has_all_parameters_of_the_shards(make_model, shard, tied):
    model, copy = make_model(tie_word_embeddings=tied), make_model(tie_word_embeddings=tied)
    expected = make_model(tie_word_embeddings=tied)
    with torch.no_grad():
        for one, other in zip(model.parameters(), expected.parameters(), strict=True):
            one.add_(1)
            other.add_(1)
    sharded = shard(model)
    assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())
    assert type(sharded) is not type(copy), "FSDP2 gives it a class of its own"
    gather_parameters(sharded, copy)
    assert_equal(copy, expected)
    assert not any(isinstance(parameter, DTensor) for parameter in copy.parameters())


@pytest.mark.parametrize("tied", [True, False])
def test_shards_take_a_whole_checkpoint(make_model, shard, tmp_path, tied):
    expected = make_model(tie_word_embeddings=tied)
    with torch.no_grad():
        for parameter in expected.parameters():
            parameter.add_(1)
    expected.save_pretrained(tmp_path)
    sharded = shard(make_model(tie_word_embeddings=tied))
    load_into_shards(sharded, type(expected), tmp_path)
    assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())
    assert_equal(sharded, expected)
