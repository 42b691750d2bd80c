"""A sequence-to-sequence model as transformers' own MarianMTModel, which needs no code of this project."""

import torch
from transformers import MarianConfig, MarianMTModel

from pipeline.errors import ConfigError
from pipeline.models.configuration_seq2seq import Seq2SeqTransformerConfig
from pipeline.models.modeling_seq2seq import Seq2SeqTransformerForConditionalGeneration
from pipeline.models.transformer_layers import sinusoidal_positions


def make_marian(config: Seq2SeqTransformerConfig, positions: int = 512) -> MarianMTModel:
    """Make transformers' Marian of the same size, with random weights; its layers are post-norm."""
    return MarianMTModel(
        MarianConfig(
            vocab_size=config.vocab_size,
            d_model=config.d_model,
            encoder_layers=config.encoder_layers,
            decoder_layers=config.decoder_layers,
            encoder_attention_heads=config.attention_heads,
            decoder_attention_heads=config.attention_heads,
            encoder_ffn_dim=config.ffn_dim,
            decoder_ffn_dim=config.ffn_dim,
            activation_function=config.activation_function,
            dropout=float(config.dropout),
            scale_embedding=True,
            pad_token_id=config.pad_token_id,
            eos_token_id=config.eos_token_id,
            decoder_start_token_id=config.decoder_start_token_id,
            forced_eos_token_id=None,
            max_position_embeddings=positions,
        )
    )


def to_marian(model: Seq2SeqTransformerForConditionalGeneration, positions: int = 512) -> MarianMTModel:
    """Make a Marian with the weights of `model`.

    Args:
        positions: length of its table of positions, which ends there; `model` has no such bound.

    Raises:
        ConfigError: for a pre-norm model, as Marian normalises behind its sublayers.
    """
    if model.config.pre_norm:
        raise ConfigError("model.pre_norm: Marian is post-norm; take a checkpoint trained with model.pre_norm=false")
    names = {
        "self_attn_residual.norm": "self_attn_layer_norm",
        "cross_attn_residual.norm": "encoder_attn_layer_norm",
        "feed_forward_residual.norm": "final_layer_norm",
        "feed_forward.": "",
        "cross_attn.": "encoder_attn.",
    }
    state = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        state[name if name.startswith("lm_head") else f"model.{name}"] = tensor
    state["model.shared.weight"] = model.encoder.embed_tokens.weight
    state["final_logits_bias"] = torch.zeros(1, model.config.vocab_size)
    # Our positions, in which sine and cosine alternate; Marian's own have all sines first.
    for side in ("encoder", "decoder"):
        state[f"model.{side}.embed_positions.weight"] = sinusoidal_positions(
            torch.arange(positions), model.config.d_model
        )
    converted = make_marian(model.config, positions).eval()
    converted.load_state_dict(state, strict=True)
    converted._keys_to_ignore_on_save = None  # Marian leaves its positions out, and would make its own when loaded
    return converted
