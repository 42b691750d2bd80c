"""Configuration of the encoder-decoder Transformer."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class Seq2SeqTransformerConfig(PreTrainedConfig):
    """Sizes and special tokens of an encoder-decoder Transformer (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762).

    The defaults are the paper's "base" model, table 3, with the layer normalisation moved in front (`pre_norm`).

    Args:
        vocab_size: size of the one vocabulary that source and target share. A run takes it from its tokenizer.
        d_model: width of every hidden state; even, and a multiple of `attention_heads`.
        encoder_layers, decoder_layers: number of layers on each side.
        attention_heads: heads of every attention, `d_model / attention_heads` wide each.
        ffn_dim: inner width of the feed-forward blocks.
        activation_function: "relu" (the paper), "gelu", or any name in `transformers.activations.ACT2FN`.
        pre_norm: normalise the input of every block, and once more at the end of each side (Xiong et al. 2020,
            https://arxiv.org/abs/2002.04745; trains without a warm-up); false is the paper's post-norm.
        dropout: on embeddings and on every block's output (paper, section 5.4).
        attention_dropout: on attention weights.
        activation_dropout: inside the feed-forward block.
        tie_word_embeddings: source embedding, target embedding and output projection are one matrix (section 3.4).
        languages: target languages of which the model is told one: code -> id of its token, such as {"de": 8000}; none
            where it has learned one language only, and needs no telling. A run takes them from its data.
        target_lang_in: where that token stands: in front of the "source", or first in the "decoder", behind the start
            token (Johnson et al. 2017, https://aclanthology.org/Q17-1024).
        label_smoothing: share of the target probability spread over the vocabulary while training (section 5.4). A run
            takes it from `training.label_smoothing_factor`.
        r_drop: weight of the divergence between two passes of each batch while training, ALPHA in R-Drop (Liang et al.
            2021, https://arxiv.org/abs/2106.14448; 5 there for translation); 0 makes one pass. A run takes it from
            `training.r_drop`.

    Raises:
        ValueError: naming the field, when a size cannot work.
    """

    model_type = "seq2seq_transformer"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {
        "hidden_size": "d_model",
        "num_hidden_layers": "decoder_layers",
        "num_attention_heads": "attention_heads",
    }

    vocab_size: int = 8000
    d_model: int = 512
    encoder_layers: int = 6
    decoder_layers: int = 6
    attention_heads: int = 8
    ffn_dim: int = 2048
    activation_function: str = "relu"
    pre_norm: bool = True
    dropout: float | int = 0.1
    attention_dropout: float | int = 0.0
    activation_dropout: float | int = 0.0
    tie_word_embeddings: bool = True
    label_smoothing: float | int = 0.0
    r_drop: float | int = 0.0
    languages: dict[str, int] | None = None
    target_lang_in: str | None = None
    is_encoder_decoder: bool = True
    use_cache: bool = True
    pad_token_id: int = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    decoder_start_token_id: int = 1

    def __post_init__(self, **kwargs):
        for name in ("vocab_size", "d_model", "encoder_layers", "decoder_layers", "attention_heads", "ffn_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: it must be at least 1")
        if self.d_model % self.attention_heads:
            raise ValueError(
                f"d_model={self.d_model} is not divisible by attention_heads={self.attention_heads}: "
                "choose a multiple, as every head takes an equal share of d_model"
            )
        if self.d_model % 2:
            raise ValueError(f"d_model={self.d_model} must be even: sinusoidal positions come in sine and cosine pairs")
        for name in ("dropout", "attention_dropout", "activation_dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: it must be at least 0 and below 1")
        if self.r_drop < 0:
            raise ValueError(f"r_drop={self.r_drop}: it must be at least 0")
        self._check_languages()
        super().__post_init__(**kwargs)
        # Read by `transformers.pipeline`; a new dict each time, as it changes what it finds.
        if self.is_encoder_decoder:
            self.custom_pipelines = {
                "translation": {"impl": "translation_pipeline.TranslationPipeline", "pt": ["AutoModelForSeq2SeqLM"]}
            }

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, as `PreTrainedConfig` does; those of languages only where there are any."""
        values = super().to_dict()
        if not values["languages"]:
            del values["languages"], values["target_lang_in"]
        return values

    def _check_languages(self) -> None:
        for code, token_id in (self.languages or {}).items():
            if not 0 <= token_id < self.vocab_size:
                raise ValueError(f"languages: the token {token_id} of {code} is not below vocab_size={self.vocab_size}")
        if self.languages and self.target_lang_in not in ("source", "decoder"):
            raise ValueError(f"target_lang_in={self.target_lang_in!r}: it must be source or decoder")


Seq2SeqTransformerConfig.register_for_auto_class()
