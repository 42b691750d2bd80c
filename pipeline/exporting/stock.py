"""A sequence-to-sequence model as one of transformers' own, which needs no code of this project.

What a post-norm model computes is a `MarianMTModel`, what a pre-norm one computes a `PegasusForConditionalGeneration`,
but for the order of the residual stream: here sine and cosine of a position alternate, there all sines come first. So
the D places of every hidden state are put into that order, by the weights that write or read them.
"""

import json
import logging
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    MarianConfig,
    MarianMTModel,
    PegasusConfig,
    PegasusForConditionalGeneration,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from pipeline.config import DataConfig
from pipeline.errors import ConfigError
from pipeline.models.configuration_seq2seq import Seq2SeqTransformerConfig
from pipeline.models.modeling_seq2seq import Seq2SeqTransformerForConditionalGeneration
from pipeline.tasks.base import Task

StockModel: TypeAlias = MarianMTModel | PegasusForConditionalGeneration

NAMES = {
    "self_attn_residual.norm": "self_attn_layer_norm",
    "cross_attn_residual.norm": "encoder_attn_layer_norm",
    "feed_forward_residual.norm": "final_layer_norm",
    "feed_forward.": "",
    "cross_attn.": "encoder_attn.",
    "final_norm": "layer_norm",
}
POSITIONS = 512  # at least
TOKENIZER_CONFIG = "tokenizer_config.json"
PIPELINES_OF_4 = ("translation", "summarization", "text2text-generation")
NOT_IN_4 = ("hardswish", "sqrtsoftplus")  # activation functions that came with transformers 5
WRITERS = ("out_proj", "fc2")  # their outputs are added to the residual stream; all other matrices read it

logger = logging.getLogger(__name__)


def make_stock(config: Seq2SeqTransformerConfig, positions: int = POSITIONS) -> StockModel:
    """Make transformers' own model of the same sizes, with random weights.

    Args:
        positions: length of its table of positions, which ends there.
    """
    config_class, model_class = (
        (PegasusConfig, PegasusForConditionalGeneration) if config.pre_norm else (MarianConfig, MarianMTModel)
    )
    return model_class(
        config_class(
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
            attention_dropout=float(config.attention_dropout),
            activation_dropout=float(config.activation_dropout),
            scale_embedding=True,
            pad_token_id=config.pad_token_id,
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            decoder_start_token_id=config.decoder_start_token_id,
            forced_eos_token_id=None,
            max_position_embeddings=positions,
            # As in the model's own config: transformers keeps what it does not know.
            **({"languages": config.languages, "target_lang_in": config.target_lang_in} if config.languages else {}),
        )
    )


def check_stock(config: Seq2SeqTransformerConfig) -> None:
    """Refuse a model that no stock one computes.

    Raises:
        ConfigError: naming the setting of the model, and why.
    """
    if not config.tie_word_embeddings:
        raise ConfigError("model.tie_word_embeddings: the stock models have one matrix for embeddings and output")
    if config.activation_function in NOT_IN_4:
        raise ConfigError(f"model.activation_function: transformers 4 has no {config.activation_function}")


def to_stock(model: Seq2SeqTransformerForConditionalGeneration, positions: int = POSITIONS) -> StockModel:
    """Make a stock model with the weights of `model`, ready to predict.

    Args:
        positions: length of its table of positions, which ends there; `model` has no such bound.

    Raises:
        ConfigError: for a model whose embeddings and output projection are not one matrix, or an activation function
            that transformers 4 does not have.
    """
    check_stock(model.config)
    order = torch.cat([torch.arange(0, model.config.d_model, 2), torch.arange(1, model.config.d_model, 2)])
    state = {_stock_name(name): _reorder(name, tensor, order.to(tensor.device)) for name, tensor in _weights(model)}
    state["model.shared.weight"] = state["lm_head.weight"]
    state["final_logits_bias"] = torch.zeros(1, model.config.vocab_size)
    converted = make_stock(model.config, positions).to(dtype=model.dtype).eval()
    # The tables of positions are its own, made when it is made or loaded.
    for side in ("encoder", "decoder"):
        name = f"model.{side}.embed_positions.weight"
        state[name] = converted.get_parameter(name)
    converted.load_state_dict(state, strict=True)
    return converted


def count_positions(generation: GenerationConfig | None, data: DataConfig | None = None, num_told: int = 0) -> int:
    """Return how many positions a stock model needs, whose table of them ends: those of the longest text it may see.

    There are some hundreds at least, as this project's own model reads longer texts than it was trained on, too.

    Args:
        generation: the model's own, where it generates; its answers begin with a start token.
        data: the section of the config that the model was trained with, where it is known.
        num_told: tokens that the decoder is given behind its start token.
    """
    lengths = [POSITIONS]
    if data is not None:
        lengths += [data.max_source_length, data.max_target_length]
    if generation is not None:
        new_tokens = generation.max_new_tokens
        lengths.append(generation.max_length or 0 if new_tokens is None else new_tokens + 1 + num_told)
    return max(lengths)


def write(
    model: Seq2SeqTransformerForConditionalGeneration, task: Task, folder: Path, positions: int = POSITIONS
) -> None:
    """Save a model in the stock form with its tokenizer: transformers 4 and 5 load it without code of others.

    Args:
        folder: to write into.
        positions: length of the table of positions; see `count_positions`.

    Raises:
        ConfigError: for a model that no stock one computes; see `to_stock`.
    """
    stock = to_stock(model, positions)
    stock.generation_config = _plain(model.generation_config)
    stock.config.task_specific_params = dict.fromkeys(PIPELINES_OF_4, _wins_in_4(model.generation_config))
    stock.save_pretrained(folder)
    assert task.tokenizer is not None
    save_tokenizer(task.tokenizer, folder)


def _wins_in_4(generation: GenerationConfig) -> dict[str, int]:
    """Return the settings in whose place the pipelines of transformers 4 take 4 beams and 256 tokens.

    They do so against the model's own generation config, but not against what its config says of their task:
    https://github.com/huggingface/transformers/blob/v4.57.6/src/transformers/pipelines/base.py#L1065-L1092
    """
    settings = {"num_beams": generation.num_beams or 1}
    return settings if generation.max_new_tokens is None else settings | {"max_new_tokens": generation.max_new_tokens}


def _plain(generation: GenerationConfig) -> GenerationConfig:
    """Return the settings that differ from those of transformers, and no trace of where they come from."""
    settings = generation.to_diff_dict()
    if settings.get("do_sample") and "top_h" in settings:
        logger.warning("generation.top_h: transformers 4 ignores it, and samples from more tokens")
    return GenerationConfig(**{name: settings[name] for name in settings if name != "transformers_version"})


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a tokenizer under a name that transformers 4 knows as well.

    transformers 5 calls its plain fast tokenizer `TokenizersBackend`, and still reads the name of transformers 4:
    https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/tokenization_utils_fast.py
    """
    tokenizer.save_pretrained(folder)
    path = folder / TOKENIZER_CONFIG
    settings = json.loads(path.read_text(encoding="utf-8"))
    for name in ("backend", "is_local", "local_files_only"):  # how it was loaded here
        settings.pop(name, None)
    if type(tokenizer) is PreTrainedTokenizerFast:
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _weights(model: Seq2SeqTransformerForConditionalGeneration) -> list[tuple[str, Tensor]]:
    return [(name, tensor.detach()) for name, tensor in model.state_dict().items()]


def _stock_name(name: str) -> str:
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name if name.startswith("lm_head") else f"model.{name}"


def _reorder(name: str, tensor: Tensor, order: Tensor) -> Tensor:
    """Put the places of the residual stream that a weight reads or writes into the order of the stock models."""
    module = name.split(".")[-2]
    if module in WRITERS:
        return tensor[order]  # rows of a matrix (D, ...), or a bias (D)
    if module in ("norm", "final_norm") or tensor.ndim == 2:
        return tensor[..., order]  # a norm (D), or columns of a matrix (..., D)
    return tensor  # a bias within a block
