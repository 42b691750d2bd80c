"""The encoder-decoder Transformer (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762) as a transformers model.

Shapes: B batch, S source length, T target length, D = d_model, V vocabulary, H heads.
Targets are aligned as in the paper's figure 1: the decoder reads `<s> y_1 .. y_m` and is to say `y_1 .. y_m </s>`;
`shift_right` is the one place where that shift is made.
"""

import math
from dataclasses import dataclass
from os import PathLike
from typing import Unpack

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPastAndCrossAttentions, Seq2SeqLMOutput
from transformers.utils import TransformersKwargs
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_seq2seq import Seq2SeqTransformerConfig
from .linear_cross_entropy import cross_entropy, head_cross_entropy, head_r_drop_loss
from .transformer_layers import (
    DecoderLayer,
    Dropout,
    EncoderLayer,
    LayerNorm,
    MultiHeadAttention,
    positions_in_rows,
    rows_mask,
    sinusoidal_positions,
)
from .translation_pipeline import TranslationPipeline  # noqa: F401  what is imported here goes into the checkpoint

IGNORED = -100  # the label that carries no loss, as everywhere in transformers


def shift_right(labels: Tensor, start_token_id: int, pad_token_id: int, rows: Tensor | None = None) -> Tensor:
    """Shift `labels` (B, T) right by one position, which gives the decoder input of teacher forcing, (B, T).

    `[[a, b, </s>], [c, </s>, -100]]` becomes `[[<s>, a, b], [<s>, c, </s>]]`; ignored labels become padding. Where many
    rows lie in one sequence, `rows` (1, T) tells them apart.
    """
    shifted = torch.roll(labels, 1, dims=-1)
    if rows is None:
        shifted[..., 0] = start_token_id
    else:
        shifted = shifted.masked_fill(positions_in_rows(rows) == 0, start_token_id)
    return shifted.masked_fill(shifted == IGNORED, pad_token_id)


def twice(states: Tensor | None) -> Tensor | None:
    """Return a batch (B, ...) and behind it the same once more, (2B, ...), for a second pass; None for None."""
    return None if states is None else torch.cat((states, states))


def _keep(states: Tensor, places: int | Tensor) -> Tensor:
    """Take the last so many places of (B, T, ...), or these; all where there are to be 0."""
    if isinstance(places, int):
        return states[:, -places:] if places else states
    return states[:, places]


@dataclass
class Seq2SeqTrainingOutput(Seq2SeqLMOutput):
    """As `Seq2SeqLMOutput`; in place of the logits, whether the label is the most probable token: `correct` (B, T).

    With R-Drop `divergence` () as well, the distance of both passes in nats, summed over the labels.
    """

    correct: Tensor | None = None
    divergence: Tensor | None = None


class Seq2SeqTransformerPreTrainedModel(PreTrainedModel):
    config: Seq2SeqTransformerConfig
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Embeddings are scaled up by sqrt(D) where they are read, so they start with variance 1/D (paper, 3.4).
        if isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.d_model**-0.5)
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    def _embed(
        self, input_ids: Tensor | None, inputs_embeds: Tensor | None, rows: Tensor | None, offset: int | Tensor = 0
    ) -> Tensor:
        """Return token vectors times sqrt(D), plus positions, in each row or from `offset` on: (B, T, D).

        The vectors are those of `input_ids` (B, T), or `inputs_embeds` (B, T, D), as `embed_tokens` would give them.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give token ids or vectors in place of them (inputs_embeds), and not both")
        vectors = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        vectors = vectors * math.sqrt(self.config.d_model)
        if rows is None:
            position_ids = torch.arange(vectors.shape[1], device=vectors.device) + offset  # (T,)
        else:
            position_ids = positions_in_rows(rows)  # (1, T)
        vectors = vectors + sinusoidal_positions(position_ids, self.config.d_model, vectors.dtype)
        if vectors.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            # Autocast on a CPU leaves sums and norms in the type that they get. From here on all states then have the
            # type of the products, or each product would cast its inputs, and each sum and norm move twice the bytes.
            vectors = vectors.to(torch.get_autocast_dtype("cpu"))
        return self.dropout(vectors)

    def _check_attentions(self, requested: bool | None) -> None:
        if requested and self.config._attn_implementation not in ("eager", "sdpa"):
            raise ValueError(
                f"output_attentions: the {self.config._attn_implementation!r} kernel does not return attention "
                "weights; call model.set_attn_implementation('eager') first"
            )


class Seq2SeqTransformerEncoder(Seq2SeqTransformerPreTrainedModel):
    _no_split_modules = ["EncoderLayer"]
    _can_record_outputs = {"hidden_states": EncoderLayer, "attentions": OutputRecorder(MultiHeadAttention, index=1)}

    def __init__(self, config: Seq2SeqTransformerConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList([EncoderLayer(config) for _ in range(config.encoder_layers)])
        self.final_norm = LayerNorm(config.d_model) if config.pre_norm else nn.Identity()
        self.gradient_checkpointing = False
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,  # (B, S)
        attention_mask: Tensor | None = None,  # (B, S), 1 for real tokens and 0 for padding
        inputs_embeds: Tensor | None = None,  # (B, S, D), in place of `input_ids`
        rows: Tensor | None = None,  # (1, S)
        **kwargs,
    ) -> BaseModelOutput:
        """Encode the source, under `attention_mask` or `rows`, into (B, S, D)."""
        return self._encode(self._embed(input_ids, inputs_embeds, rows), attention_mask, rows, **kwargs)

    def _encode(
        self, hidden_states: Tensor, attention_mask: Tensor | None, rows: Tensor | None = None, **kwargs
    ) -> BaseModelOutput:
        """Take what `_embed` gave through all layers, (B, S, D) each."""
        self._check_attentions(kwargs.get("output_attentions"))
        if rows is None:
            mask = create_bidirectional_mask(self.config, hidden_states, attention_mask)
        else:
            mask = rows_mask(rows, rows, hidden_states.dtype)
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, **kwargs)
        return BaseModelOutput(last_hidden_state=self.final_norm(hidden_states))


class Seq2SeqTransformerDecoder(Seq2SeqTransformerPreTrainedModel):
    _no_split_modules = ["DecoderLayer"]
    _can_record_outputs = {
        "hidden_states": DecoderLayer,
        "attentions": OutputRecorder(MultiHeadAttention, index=1, layer_name="self_attn"),
        "cross_attentions": OutputRecorder(MultiHeadAttention, index=1, layer_name="cross_attn"),
    }

    def __init__(self, config: Seq2SeqTransformerConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList([DecoderLayer(config, index) for index in range(config.decoder_layers)])
        self.final_norm = LayerNorm(config.d_model) if config.pre_norm else nn.Identity()
        self.gradient_checkpointing = False
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None,  # (B, T); in beam search as many rows for each source as there are beams
        source: Tensor,  # (B, S, D)
        attention_mask: Tensor | None = None,  # (B, T so far)
        source_attention_mask: Tensor | None = None,  # (B, S)
        past_key_values: Cache | None = None,
        use_cache: bool = False,
        inputs_embeds: Tensor | None = None,  # (B, T, D), in place of `input_ids`
        rows: Tensor | None = None,  # (1, T)
        source_rows: Tensor | None = None,  # (1, S)
        **kwargs,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Decode T target tokens, seeing the source and the target up to each of them."""
        self._check_attentions(kwargs.get("output_attentions"))
        if use_cache and past_key_values is None:
            past_key_values = EncoderDecoderCache(DynamicCache(config=self.config), DynamicCache(config=self.config))
        past_length = 0 if past_key_values is None else past_key_values.get_seq_length()
        hidden_states = self._embed(input_ids, inputs_embeds, rows, past_length)  # (B, T, D)
        if rows is not None and source_rows is not None:
            causal_mask = rows_mask(rows, rows, hidden_states.dtype, is_causal=True)
            source_mask = rows_mask(rows, source_rows, hidden_states.dtype)
        else:
            causal_mask = create_causal_mask(
                self.config,
                hidden_states,
                attention_mask,
                past_key_values.self_attention_cache if isinstance(past_key_values, EncoderDecoderCache) else None,
            )
            queries = source[:, :1].expand(-1, hidden_states.shape[1], -1)  # as many rows as sources, not as beams
            source_mask = create_bidirectional_mask(
                self.config, queries, source_attention_mask, encoder_hidden_states=source
            )
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                source,
                attention_mask=causal_mask,
                source_attention_mask=source_mask,
                past_key_values=past_key_values,
                **kwargs,
            )
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=self.final_norm(hidden_states), past_key_values=past_key_values
        )


class Seq2SeqTransformerForConditionalGeneration(Seq2SeqTransformerPreTrainedModel, GenerationMixin):
    """Encoder, decoder and output projection, with the loss of teacher forcing.

    Source and target are right-padded. Where no `attention_mask` is given, padding is what equals `pad_token_id`,
    in `forward` and in `generate` alike.
    """

    _tied_weights_keys = {
        "decoder.embed_tokens.weight": "encoder.embed_tokens.weight",
        "lm_head.weight": "encoder.embed_tokens.weight",
    }
    accepts_loss_kwargs = True  # tells Trainer to count the targets of the whole step and pass num_items_in_batch

    def __init__(self, config: Seq2SeqTransformerConfig):
        super().__init__(config)
        # The loss is computed here. The name of the class would select ForCausalLMLoss, which shifts the labels again:
        # https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/loss/loss_utils.py
        self.loss_type = "ForMaskedLM"
        self.encoder = Seq2SeqTransformerEncoder(config)
        self.decoder = Seq2SeqTransformerDecoder(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.decoder.embed_tokens = self.encoder.embed_tokens  # one module, as FSDP2 groups modules, not tensors
            # Trainer then knows them as tied when it loads the best checkpoint.
            self._keys_to_ignore_on_save = list(self._tied_weights_keys)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.encoder.embed_tokens

    def mark_tied_weights_as_initialized(self, loading_info) -> None:
        """Mark them as `PreTrainedModel` does, when a checkpoint was read, but know one module by both its names.

        transformers takes the names for two weights, and would put nothing in the place of one that was stored under
        the other name, or as `lm_head`:
        https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/modeling_utils.py
        """
        names = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
        if not self._shares_embeddings or not names <= loading_info.missing_keys:
            loading_info.missing_keys -= names if self._shares_embeddings else set()
            super().mark_tied_weights_as_initialized(loading_info)

    def save_pretrained(
        self, save_directory: str | PathLike, is_main_process: bool = True, state_dict: dict | None = None, **kwargs
    ) -> None:
        """Save as `PreTrainedModel` does; as a model without tied weights where they are no longer one.

        They are not after an adapter of one of them was merged, or another module was put in the place of one.
        """
        weights = self.state_dict() if state_dict is None else state_dict
        names = ("encoder.embed_tokens.weight", *self._tied_weights_keys)
        embeddings = {name: weights[name] for name in names if name in weights}
        places = {embedding.data_ptr() for embedding in embeddings.values()} - {0}  # of offloaded or sharded weights
        if len(places) > 1:
            self.config.tie_word_embeddings = False
            self._keys_to_ignore_on_save = []
            state_dict = {**weights, **{name: embedding.clone() for name, embedding in embeddings.items()}}
        super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)

    @property
    def _shares_embeddings(self) -> bool:
        return self.decoder.embed_tokens is self.encoder.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        if self._shares_embeddings:
            self.decoder.embed_tokens = value
        self.encoder.embed_tokens = value

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Resize the embeddings of both sides and the output projection as `PreTrainedModel` does."""
        embeddings = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        if self.decoder.embed_tokens is not embeddings:
            self.decoder.resize_token_embeddings(embeddings.num_embeddings, mean_resizing=mean_resizing)
        return embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        source_rows: Tensor | None = None,
        target_rows: Tensor | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],  # type: ignore[misc]  # mypy skips transformers
    ) -> Seq2SeqLMOutput | tuple:
        """Score every next target token, all positions at once.

        Args:
            input_ids: source (B, S), `x_1 .. x_n </s>`; may be left out when `encoder_outputs` is given.
            attention_mask: (B, S), 1 for real tokens and 0 for padding.
            decoder_input_ids: (B, T), `<s> y_1 .. y_m`; made from `labels` when left out.
            decoder_attention_mask: (B, T so far); not needed for right-padded targets.
            labels: (B, T), `y_1 .. y_m </s>`, -100 where no loss is due.
            inputs_embeds, decoder_inputs_embeds: (B, S, D) and (B, T, D), vectors in place of the ids, as
                `get_input_embeddings()` and `decoder.embed_tokens` would give them. Padding is then known by the masks
                alone.
            source_rows, target_rows: (1, S) and (1, T), where all pairs lie in one sequence each side, without padding
                between them: the number of the pair that each place belongs to, rising; 128 or a multiple long on a
                GPU. In place of the attention masks.
            num_items_in_batch: divides the summed loss: the number of targets in the whole optimizer step, over all
                micro-batches and ranks. The targets of this batch when left out.
            logits_to_keep: give the logits of only so many positions at the end, or of these (a tensor of places); of
                all where it is 0. The loss is that of all labels.

        Returns:
            `logits` (B, T, V), and `loss` when `labels` are given: cross-entropy in nats per target. In training mode
            the loss is smoothed by `config.label_smoothing`, and in place of logits, which would need most of the
            memory, there is `correct` (B, T): whether the label is the most probable token. Where `config.r_drop` is
            not 0, training mode makes two passes as one batch of 2B rows, and so many have all states that are
            returned; `divergence` () is their distance, summed over the labels.

        Raises:
            ValueError: when neither labels nor decoder inputs are given, both ids and vectors of one side, or
                attentions are asked of a kernel that does not return them.
        """
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = shift_right(
                labels, self.config.decoder_start_token_id, self.config.pad_token_id, target_rows
            )
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            raise ValueError("give labels or decoder_input_ids: without a target there is nothing to score")
        if attention_mask is None and input_ids is not None and source_rows is None:
            attention_mask = input_ids.ne(self.config.pad_token_id).long()
        if not (encoder_outputs is None or isinstance(encoder_outputs, BaseModelOutput)):
            encoder_outputs = BaseModelOutput(*encoder_outputs)
        if self.training and labels is not None and self.config.r_drop:
            # The numbers of packed rows stay as they are: both passes have the same masks and positions.
            input_ids, inputs_embeds, attention_mask = twice(input_ids), twice(inputs_embeds), twice(attention_mask)
            decoder_input_ids, decoder_inputs_embeds = twice(decoder_input_ids), twice(decoder_inputs_embeds)
            decoder_attention_mask = twice(decoder_attention_mask)
            if encoder_outputs is not None:
                encoder_outputs = BaseModelOutput(last_hidden_state=twice(encoder_outputs.last_hidden_state))
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids, attention_mask, inputs_embeds, source_rows, return_dict=True, **kwargs
            )
        use_cache = labels is None and (self.config.use_cache if use_cache is None else use_cache)
        decoder_outputs = self.decoder(
            decoder_input_ids,
            encoder_outputs.last_hidden_state,
            attention_mask=decoder_attention_mask,
            source_attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            inputs_embeds=decoder_inputs_embeds,
            rows=target_rows,
            source_rows=source_rows,
            return_dict=True,
            **kwargs,
        )
        outputs = Seq2SeqTrainingOutput(
            **self._score(decoder_outputs.last_hidden_state, labels, num_items_in_batch, logits_to_keep),
            past_key_values=decoder_outputs.past_key_values,
            decoder_hidden_states=decoder_outputs.get("hidden_states"),
            decoder_attentions=decoder_outputs.get("attentions"),
            cross_attentions=decoder_outputs.get("cross_attentions"),
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.get("hidden_states"),
            encoder_attentions=encoder_outputs.get("attentions"),
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return outputs if return_dict else outputs.to_tuple()

    def _score(
        self, hidden: Tensor, labels: Tensor | None, num_items: Tensor | int | None, logits_to_keep: int | Tensor
    ) -> dict[str, Tensor]:
        """Compute the loss and the logits, or `correct` in place of these in training, from `hidden` (B, T, D)."""
        if labels is None:
            return {"logits": self.lm_head(_keep(hidden, logits_to_keep))}
        if num_items is None:
            num_items = labels.ne(IGNORED).sum()
        smoothing = float(self.config.label_smoothing)
        if self.training and self.config.r_drop:
            total, correct, divergence = head_r_drop_loss(
                hidden, self.lm_head, labels, float(self.config.r_drop), IGNORED, smoothing
            )
            return {"loss": total / num_items, "correct": correct, "divergence": divergence}
        if self.training:
            total, correct = head_cross_entropy(hidden, self.lm_head, labels, IGNORED, smoothing)
            return {"loss": total / num_items, "correct": correct}
        logits = self.lm_head(hidden)  # (B, T, V)
        total, _ = cross_entropy(logits, labels, IGNORED)
        return {"loss": total / num_items, "logits": _keep(logits, logits_to_keep)}

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        return shift_right(labels, self.config.decoder_start_token_id, self.config.pad_token_id)

    def generate(self, inputs: Tensor | None = None, *args, **kwargs):
        """Generate as `GenerationMixin` does, but without attending to the padding of the source."""
        source = kwargs.get("input_ids", inputs)
        if source is not None and kwargs.get("attention_mask") is None:
            kwargs["attention_mask"] = source.ne(self.config.pad_token_id).long()
        return super().generate(inputs, *args, **kwargs)

    def _expand_inputs_for_generation(self, expand_size: int = 1, **kwargs):
        """Expand all inputs as `GenerationMixin` does, except the encoded source: all its beams read the one copy."""
        if not self.shares_source:
            return super()._expand_inputs_for_generation(expand_size, **kwargs)
        shared = {name: kwargs.pop(name, None) for name in ("encoder_outputs", "attention_mask")}
        input_ids, kwargs = super()._expand_inputs_for_generation(expand_size, **kwargs | {"is_encoder_decoder": False})
        return input_ids, kwargs | shared

    @property
    def shares_source(self) -> bool:
        """Whether the beams of a source read one copy of it, which the kernel's masks must allow."""
        return self.config._attn_implementation in ("eager", "sdpa")

    def _reorder_cache(self, past_key_values: EncoderDecoderCache, beam_idx: Tensor) -> EncoderDecoderCache:
        """Reorder only the target's cache: beams of one source change places, and its keys and values stay."""
        past_key_values.self_attention_cache.reorder_cache(beam_idx)
        return past_key_values


AutoConfig.register(Seq2SeqTransformerConfig.model_type, Seq2SeqTransformerConfig)
AutoModelForSeq2SeqLM.register(Seq2SeqTransformerConfig, Seq2SeqTransformerForConditionalGeneration)
Seq2SeqTransformerForConditionalGeneration.register_for_auto_class("AutoModelForSeq2SeqLM")
