"""A Transformer encoder that sorts texts into classes.

Shapes: B batch, S source length, D = d_model, C classes.
"""

import math

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput
from transformers.utils.output_capturing import capture_outputs

from .configuration_classifier import TransformerClassifierConfig
from .modeling_seq2seq import Seq2SeqTransformerEncoder, Seq2SeqTransformerPreTrainedModel


class ConvolutionalEncoder(Seq2SeqTransformerEncoder):
    """An encoder whose embeddings know their neighbours, by convolutions of several widths, and may have word vectors
    that do not change beside those that are learned (Kim 2014, https://aclanthology.org/D14-1181)."""

    config: TransformerClassifierConfig

    def __init__(self, config: TransformerClassifierConfig):
        super().__init__(config)
        self.static_tokens = None
        if config.static_embeddings:
            self.static_tokens = nn.Embedding(config.vocab_size, config.d_model).requires_grad_(False)
            self.static_projection = nn.Linear(config.d_model, config.d_model)
        self.convolutions = nn.ModuleList(
            [nn.Conv1d(config.d_model, config.d_model, width, padding="same") for width in config.conv_kernels or []]
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv1d):  # as torch begins
            bound = 1 / math.sqrt(module.weight[0].numel())
            init.uniform_(module.weight, -bound, bound)
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    @capture_outputs
    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, rows: Tensor | None = None, **kwargs
    ) -> BaseModelOutput:
        """Encode as the plain encoder does, from what the convolutions give."""
        return self._encode(self._convolve(input_ids, rows), attention_mask, rows, **kwargs)

    def _convolve(self, input_ids: Tensor, rows: Tensor | None) -> Tensor:
        vectors = self._embed(input_ids, None, rows)  # (B, S, D)
        if self.static_tokens is not None:
            static = self.static_tokens(input_ids) * math.sqrt(self.config.d_model)
            vectors = vectors + self.dropout(self.static_projection(static))
        real = input_ids.ne(self.config.pad_token_id)[..., None]
        inputs = (vectors * real).transpose(1, 2)  # zeros behind a text, padded or not
        return vectors + sum(convolution(inputs).relu().transpose(1, 2) for convolution in self.convolutions)


class TransformerForSequenceClassification(Seq2SeqTransformerPreTrainedModel):
    """Encoder, pooling over the real positions, and a linear head, with cross-entropy."""

    config: TransformerClassifierConfig
    accepts_loss_kwargs = True  # tells Trainer to count the texts of the whole step and pass num_items_in_batch

    def __init__(self, config: TransformerClassifierConfig):
        super().__init__(config)
        self.encoder = ConvolutionalEncoder(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.d_model, config.num_labels)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.encoder.embed_tokens = value

    def get_static_embeddings(self) -> nn.Embedding | None:
        """Return the word vectors that training leaves as they are, where `config.static_embeddings` asks for them."""
        return self.encoder.static_tokens

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput | tuple:
        """Score every class.

        Args:
            input_ids: (B, S).
            attention_mask: (B, S), 1 for real tokens and 0 for padding; made from `pad_token_id` when left out.
            labels: (B,), numbers of classes.
            num_items_in_batch: divides the summed loss: the texts in the whole optimizer step; those of this batch when
                left out.

        Returns:
            `logits` (B, C), and `loss` when `labels` are given, smoothed by `config.label_smoothing` in training only.
        """
        if attention_mask is None:
            attention_mask = input_ids.ne(self.config.pad_token_id).long()
        input_ids = input_ids.masked_fill(attention_mask == 0, self.config.pad_token_id)
        outputs = self.encoder(input_ids, attention_mask, **kwargs)
        pooled = self._pool(outputs.last_hidden_state, attention_mask)  # (B, D)
        logits = self.classifier(self.dropout(pooled))  # (B, C)
        result = SequenceClassifierOutput(
            loss=None if labels is None else self._loss(logits, labels, num_items_in_batch),
            logits=logits,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )
        return result.to_tuple() if return_dict is False else result

    def _pool(self, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        if self.config.pooling == "first":
            return hidden_states[:, 0]
        if self.config.pooling == "max":
            return hidden_states.masked_fill(attention_mask[..., None] == 0, -torch.inf).amax(1)
        mask = attention_mask[..., None].to(hidden_states.dtype)  # (B, S, 1)
        return (hidden_states * mask).sum(1) / mask.sum(1).clamp(min=1)

    def _loss(self, logits: Tensor, labels: Tensor, num_items: Tensor | int | None) -> Tensor:
        total = nn.functional.cross_entropy(
            logits.float(),
            labels,
            label_smoothing=float(self.config.label_smoothing) if self.training else 0.0,
            reduction="sum",
        )
        return total / (torch.tensor(len(labels)) if num_items is None else num_items)


AutoConfig.register(TransformerClassifierConfig.model_type, TransformerClassifierConfig)
AutoModelForSequenceClassification.register(TransformerClassifierConfig, TransformerForSequenceClassification)
TransformerForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
