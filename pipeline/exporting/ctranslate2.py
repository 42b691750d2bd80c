"""A sequence-to-sequence model as a model of CTranslate2 (https://github.com/OpenNMT/CTranslate2).

Its description of a Transformer is filled straight from the weights here. Its converters know a fixed list of
transformers' models, of which that for Marian drops the last row of the vocabulary, and that for Pegasus fails with
transformers 5.
"""

from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ctranslate2.converters.utils import fuse_linear
from ctranslate2.specs.attention_spec import MultiHeadAttentionSpec
from ctranslate2.specs.common_spec import Activation, LayerNormSpec, LinearSpec
from ctranslate2.specs.transformer_spec import TransformerSpec
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from pipeline.errors import ConfigError
from pipeline.models.modeling_seq2seq import Seq2SeqTransformerForConditionalGeneration
from pipeline.models.transformer_layers import DecoderLayer, MultiHeadAttention, sinusoidal_positions
from pipeline.tasks.base import Task

ACTIVATIONS = {
    "relu": Activation.RELU,
    "gelu": Activation.GELU,
    "gelu_python": Activation.GELU,
    "gelu_new": Activation.GELUTanh,
    "gelu_fast": Activation.GELUTanh,
    "gelu_pytorch_tanh": Activation.GELUTanh,
    "quick_gelu": Activation.GELUSigmoid,
    "silu": Activation.SWISH,
    "swish": Activation.SWISH,
    "tanh": Activation.Tanh,
    "sigmoid": Activation.Sigmoid,
}


def write(
    model: Seq2SeqTransformerForConditionalGeneration,
    task: Task,
    folder: Path,
    positions: int,
    quantization: str | None = None,
) -> None:
    """Write a model in the form that `ctranslate2.Translator` loads.

    Args:
        folder: which exists and is empty.
        positions: of the longest source and target.
        quantization: of the matrices, one that `EXPORTS` names; None for float32.

    Raises:
        ConfigError: for a model that CTranslate2 cannot compute.
    """
    assert task.tokenizer is not None
    spec = make_spec(model, positions)
    tokens = vocabulary(task.tokenizer, model.config.vocab_size)
    spec.register_source_vocabulary(tokens)
    spec.register_target_vocabulary(tokens)
    config, padding = model.config, model.config.pad_token_id
    spec.config.decoder_start_token = tokens[config.decoder_start_token_id]
    spec.config.bos_token = tokens[_first(config.bos_token_id, config.decoder_start_token_id)]
    spec.config.eos_token = tokens[_first(config.eos_token_id, task.tokenizer.eos_token_id, padding)]
    spec.config.unk_token = tokens[_first(task.tokenizer.unk_token_id, padding)]
    spec.config.add_attribute("max_positions", positions)  # CTranslate2 passes over what it does not know
    spec.validate()
    spec.optimize(quantization)  # a second time would take the names of shared weights for weights
    spec.save(str(folder))


def make_spec(model: Seq2SeqTransformerForConditionalGeneration, positions: int) -> TransformerSpec:
    """Fill CTranslate2's description of a Transformer with the weights of a model, in float32.

    Raises:
        ConfigError: for an activation function that CTranslate2 does not have.
    """
    config = model.config
    if config.activation_function not in ACTIVATIONS:
        raise ConfigError(
            f"model.activation_function: CTranslate2 has no {config.activation_function!r}; it has "
            f"{', '.join(ACTIVATIONS)}; try --to onnx"
        )
    spec = TransformerSpec.from_config(
        (config.encoder_layers, config.decoder_layers),
        config.attention_heads,
        pre_norm=config.pre_norm,
        activation=ACTIVATIONS[config.activation_function],
    )
    # One more, as CTranslate2 reads a target to its end when it scores one.
    table = sinusoidal_positions(torch.arange(positions + 1), config.d_model)  # (positions + 1, D)
    for side, side_spec in ((model.encoder, spec.encoder), (model.decoder, spec.decoder)):
        side_spec.position_encodings.encodings = table.numpy()
        if isinstance(side.final_norm, nn.LayerNorm):
            _set_norm(side_spec.layer_norm, side.final_norm)
        for layer, layer_spec in zip(side.layers, side_spec.layer, strict=True):
            _set_layer(layer_spec, layer)
    spec.encoder.embeddings[0].weight = _array(model.encoder.embed_tokens.weight)
    spec.decoder.embeddings.weight = _array(model.decoder.embed_tokens.weight)
    _set_linear(spec.decoder.projection, model.lm_head)
    return spec


def vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> list[str]:
    """Return the token of each id of a model; one that the tokenizer does not have gets a name that is no token.

    CTranslate2 knows tokens by their text, so no two ids may have the same.
    """
    known = tokenizer.get_vocab()
    tokens = {number: token for token, number in known.items()}
    unused = (name for number in count() if (name := f"<unused {number}>") not in known)
    return [tokens[number] if number in tokens else next(unused) for number in range(vocab_size)]


def _set_layer(spec: Any, layer: Any) -> None:
    """Set a layer of the encoder or the decoder."""
    _set_attention(spec.self_attention, layer.self_attn, joined=3)
    _set_norm(spec.self_attention.layer_norm, layer.self_attn_residual.norm)
    if isinstance(layer, DecoderLayer):
        _set_attention(spec.attention, layer.cross_attn, joined=1)
        _set_norm(spec.attention.layer_norm, layer.cross_attn_residual.norm)
    _set_linear(spec.ffn.linear_0, layer.feed_forward.fc1)
    _set_linear(spec.ffn.linear_1, layer.feed_forward.fc2)
    _set_norm(spec.ffn.layer_norm, layer.feed_forward_residual.norm)


def _set_attention(spec: MultiHeadAttentionSpec, attention: MultiHeadAttention, joined: int) -> None:
    """Set the projections, of which the first `joined` are one matrix: all three, or the queries only."""
    projections = [_linear(module) for module in (attention.q_proj, attention.k_proj, attention.v_proj)]
    fuse_linear(spec.linear[0], projections[:joined])
    if joined < len(projections):
        fuse_linear(spec.linear[1], projections[joined:])
    _set_linear(spec.linear[-1], attention.out_proj)


def _linear(module: nn.Linear) -> LinearSpec:
    spec = LinearSpec()
    _set_linear(spec, module)
    return spec


def _set_linear(spec: LinearSpec, module: nn.Linear) -> None:
    spec.weight = _array(module.weight)
    if module.bias is not None:
        spec.bias = _array(module.bias)


def _set_norm(spec: LayerNormSpec, module: nn.LayerNorm) -> None:
    spec.gamma = _array(module.weight)
    spec.beta = _array(module.bias)


def _array(weight: Tensor) -> np.ndarray:
    """Return a weight as an array of its own, as quantization changes it in place."""
    return weight.detach().cpu().float().numpy().copy()


def _first(*ids: int | list[int] | None) -> int:
    """Return the first token that is given, as a number or in a list."""
    given = next(number for number in ids if number is not None and number != [])
    return given[0] if isinstance(given, list) else given
