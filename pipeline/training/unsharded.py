"""Whole copies of a model whose parameters FSDP2 spreads over the ranks.

A copy is needed wherever a model does more than one forward pass on the same batch. Ranks generate different numbers
of tokens, so cannot share the work on one sequence; and FSDP2 changes the class of the model, with which
`save_pretrained` would write FSDP's code into the checkpoint in place of the model's.

All functions are collective: every rank must call them.
"""

from pathlib import Path

from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from transformers import PreTrainedModel

from pipeline.tasks.trained_model import load_whole


def gather_parameters(sharded: nn.Module, copy: PreTrainedModel) -> None:
    """Fill `copy`, a model of the ordinary class, with all parameters of `sharded`."""
    copy.load_state_dict(get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True)))


def load_into_shards(sharded: nn.Module, model_class: type[PreTrainedModel], checkpoint: Path) -> None:
    """Load a checkpoint that holds the whole model; each rank takes its part of the parameters."""
    model = load_whole(model_class, checkpoint)
    # `named_parameters` has tied weights by one name only. Strict loading would miss the others, which are the same.
    parameters = {name: parameter.data for name, parameter in model.named_parameters()}
    set_model_state_dict(sharded, parameters, options=StateDictOptions(full_state_dict=True, strict=False))
