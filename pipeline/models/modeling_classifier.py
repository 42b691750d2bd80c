"""A Transformer encoder that sorts texts into classes.

Shapes: B batch, S source length, D = d_model, C classes.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput
from transformers.utils import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .configuration_classifier import TransformerClassifierConfig
from .linear_cross_entropy import r_drop_loss
from .modeling_seq2seq import IGNORED, Seq2SeqTransformerEncoder, Seq2SeqTransformerPreTrainedModel, twice


@dataclass
class ClassifierOutput(SequenceClassifierOutput):
    """As `SequenceClassifierOutput`; with R-Drop `divergence` () as well, of both passes, summed over the labels."""

    divergence: Tensor | None = None


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
        self,
        input_ids: Tensor | None = None,  # (B, S)
        attention_mask: Tensor | None = None,  # (B, S), 1 for real tokens and 0 for padding
        inputs_embeds: Tensor | None = None,  # (B, S, D), in place of `input_ids`, which static embeddings still need
        **kwargs,
    ) -> BaseModelOutput:
        """Encode as the plain encoder does, from what the convolutions give."""
        return self._encode(self._convolve(input_ids, inputs_embeds, attention_mask), attention_mask, **kwargs)

    def _convolve(
        self, input_ids: Tensor | None, inputs_embeds: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        is_for_static = self.static_tokens is not None and inputs_embeds is not None
        vectors = self._embed(None if is_for_static else input_ids, inputs_embeds, None)  # (B, S, D)
        if self.static_tokens is not None:
            if input_ids is None:
                raise ValueError(
                    "inputs_embeds: the model has static embeddings as well, which are looked up by input_ids; give "
                    "these as well, or train a model with static_embeddings=false"
                )
            static = self.static_tokens(input_ids) * math.sqrt(self.config.d_model)
            vectors = vectors + self.dropout(self.static_projection(static))
        inputs = vectors if attention_mask is None else vectors * attention_mask.bool()[..., None]
        inputs = inputs.transpose(1, 2)  # zeros behind a text, padded or not
        return vectors + sum(convolution(inputs).relu().transpose(1, 2) for convolution in self.convolutions)


class TransformerForSequenceClassification(Seq2SeqTransformerPreTrainedModel):
    """Encoder, pooling over the real positions, and a linear head, with the loss of `config.problem_type`."""

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

    def _resize_token_embeddings(
        self, new_num_tokens: int, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        embeddings = super()._resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        if self.encoder.static_tokens is not None:
            self.encoder.static_tokens = self._get_resized_embeddings(
                self.encoder.static_tokens, embeddings.num_embeddings, mean_resizing=mean_resizing
            )
        return embeddings

    def tie_weights(self, *args, **kwargs) -> None:
        """Tie weights as `PreTrainedModel` does, and keep the static ones out of training.

        This ends every `from_pretrained`, which would let all that it loads be trained:
        https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/core_model_loading.py
        """
        super().tie_weights(*args, **kwargs)
        if self.encoder.static_tokens is not None:
            self.encoder.static_tokens.requires_grad_(False)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> SequenceClassifierOutput:
        """Score every class.

        Args:
            input_ids: (B, S).
            attention_mask: (B, S), 1 for real tokens and 0 for padding; when left out, made from `pad_token_id`, or all
                ones where vectors are given.
            labels: (B,), numbers of classes; (B,) or (B, C) values for regression; (B, C) of 0 and 1 where a text has
                any number of classes. `config.problem_type` says which; where it is None, one class is regression,
                whole numbers are classes, and all else is multi-label.
            num_items_in_batch: divides the summed loss: the labels in the whole optimizer step; those of this batch
                when left out.
            inputs_embeds: (B, S, D), vectors in place of the ids, as `get_input_embeddings()` would give them; beside
                the ids where there are static embeddings, which only ids have.
            output_attentions, output_hidden_states: return those of the encoder, (B, H, S, S) of each layer and
                (B, S, D) before, between and behind the layers.

        Returns:
            `logits` (B, C), and `loss` when `labels` are given. That of single labels is smoothed by
            `config.label_smoothing` in training. Where `config.r_drop` is not 0, training mode makes two passes as one
            batch of 2B rows, and so many have all states that are returned; the logits are those of the first, and
            `divergence` () is their distance, summed over the labels. Where `config.adversarial_epsilon` is not 0, the
            loss in training mode is the mean of that of the texts and that of their worst neighbours; all else is that
            of the texts.

        Raises:
            ValueError: for labels of another shape; where `config.r_drop` is not 0, for labels that are not single;
                when attentions are asked of a kernel that does not return them; for vectors without ids where there are
                static embeddings; for adversarial training in float16.
        """
        if attention_mask is None:
            if input_ids is not None:
                attention_mask = input_ids.ne(self.config.pad_token_id).long()
            elif inputs_embeds is not None:
                attention_mask = inputs_embeds.new_ones(inputs_embeds.shape[:2], dtype=torch.long)
        config = self.config
        is_trained = self.training and labels is not None
        if is_trained and config.r_drop > 0:
            input_ids, attention_mask, inputs_embeds = twice(input_ids), twice(attention_mask), twice(inputs_embeds)
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        states = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        # Without ids and vectors there is nothing to move, and the encoder raises.
        is_given = input_ids is not None or inputs_embeds is not None
        is_adversarial = is_given and torch.is_grad_enabled() and config.adversarial_epsilon > 0
        compute = self._compute_adversarially if is_trained and is_adversarial else self._compute
        return compute(input_ids, attention_mask, inputs_embeds, labels, num_items_in_batch, **states)

    @torch.compiler.disable(recursive=False)  # the gradient needs vectors from outside the graph of the pass
    def _compute_adversarially(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor,
        inputs_embeds: Tensor | None,
        labels: Tensor,
        num_items: Tensor | int | None,
        **states: bool,
    ) -> ClassifierOutput:
        """Make a pass, and one of vectors moved by `config.adversarial_epsilon` to where the loss grows fastest."""
        self._refuse_float16()
        if inputs_embeds is None:
            vectors = self.get_input_embeddings()(input_ids)  # (B, S, D)
            input_ids = input_ids if self.config.static_embeddings else None
        else:
            vectors = inputs_embeds
        vectors = vectors if vectors.requires_grad else vectors.detach().requires_grad_()
        outputs = self._compute(input_ids, attention_mask, vectors, labels, num_items, **states)
        [gradient] = torch.autograd.grad(outputs.loss, vectors, retain_graph=True)  # a constant in what follows
        direction = nn.functional.normalize(gradient.flatten(1)).view_as(vectors)  # of each text, as one vector (S * D)
        neighbours = vectors + float(self.config.adversarial_epsilon) * direction
        adversarial = self._compute(input_ids, attention_mask, neighbours, labels, num_items)
        outputs.loss = (outputs.loss + adversarial.loss) / 2
        return outputs

    def _refuse_float16(self) -> None:
        """Refuse a gradient between two passes in float16: no loss scaler reaches it, and small ones become 0."""
        kind = self.device.type
        is_autocast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
        if is_autocast or self.dtype == torch.float16:
            raise ValueError(
                f"adversarial_epsilon={self.config.adversarial_epsilon}: not in float16, in which small gradients "
                "become 0; train in bfloat16 or float32, or set it to 0"
            )

    def _compute(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        inputs_embeds: Tensor | None,
        labels: Tensor | None,
        num_items: Tensor | int | None,
        **states: bool,
    ) -> ClassifierOutput:
        """Make one pass, in which R-Drop has its two as one batch."""
        outputs = self.encoder(input_ids, attention_mask, inputs_embeds, return_dict=True, **states)
        assert attention_mask is not None  # without ids and vectors the encoder raises
        pooled = self._pool(outputs.last_hidden_state, attention_mask)  # (B, D)
        logits = self.classifier(self.dropout(pooled))  # (B, C)
        loss = divergence = None
        if labels is not None and self.training and self.config.r_drop > 0:
            loss, divergence = self._r_drop_loss(logits, labels.to(logits.device), num_items)
            logits = logits[: len(logits) // 2]
        elif labels is not None:
            loss = self._loss(logits, labels, num_items)
        return ClassifierOutput(
            loss=loss,
            logits=logits,
            divergence=divergence,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )

    def _pool(self, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        """Pool over the real positions, (B, S, D) -> (B, D); zeros where a row has none."""
        real = attention_mask.bool()  # (B, S)
        if self.config.pooling == "mean":
            mask = real[..., None].to(hidden_states.dtype)  # (B, S, 1)
            return (hidden_states * mask).sum(1) / mask.sum(1).clamp(min=1)
        if self.config.pooling == "max":
            pooled = hidden_states.masked_fill(~real[..., None], -torch.inf).amax(1)
        else:
            first = real.int().argmax(1)[:, None, None]  # (B, 1, 1)
            # `take_along_dim` would fix both sizes in an export.
            pooled = hidden_states.gather(1, first.expand(-1, -1, hidden_states.shape[-1]))[:, 0]
        return pooled.masked_fill(~real.any(1, keepdim=True), 0)

    def _loss(self, logits: Tensor, labels: Tensor, num_items: Tensor | int | None) -> Tensor:
        logits = logits.float()
        labels = labels.to(logits.device)
        problem_type = self._problem_type(labels)
        if problem_type == "single_label_classification":
            total = nn.functional.cross_entropy(
                logits,
                labels.flatten(),
                ignore_index=IGNORED,
                label_smoothing=float(self.config.label_smoothing) if self.training else 0.0,
                reduction="sum",
            )
            return total / (labels.ne(IGNORED).sum() if num_items is None else num_items)
        if logits.shape[1] == 1 and labels.ndim == 1:
            labels = labels[:, None]
        if labels.shape != logits.shape:
            raise ValueError(
                f"labels has the shape {tuple(labels.shape)}; {tuple(logits.shape)} is needed for {problem_type}"
            )
        if problem_type == "regression":
            total = nn.functional.mse_loss(logits, labels.float(), reduction="sum")
        else:
            total = nn.functional.binary_cross_entropy_with_logits(logits, labels.float(), reduction="sum")
        return total / (labels.numel() if num_items is None else num_items)

    def _r_drop_loss(self, logits: Tensor, labels: Tensor, num_items: Tensor | int | None) -> tuple[Tensor, Tensor]:
        """Compute the loss of two passes from their logits (2B, C), and their divergence."""
        if self._problem_type(labels) != "single_label_classification":
            raise ValueError(f"r_drop={self.config.r_drop}: only for texts that have one class each; set it to 0")
        labels = labels.flatten()
        smoothing = float(self.config.label_smoothing)
        total, _, divergence = r_drop_loss(logits, labels, float(self.config.r_drop), IGNORED, smoothing)
        return total / (labels.ne(IGNORED).sum() if num_items is None else num_items), divergence

    def _problem_type(self, labels: Tensor) -> str:
        """Return that of the config, or what transformers' models would take; the config stays as it is."""
        if self.config.problem_type is not None:
            return self.config.problem_type
        if self.config.num_labels == 1:
            return "regression"
        is_class = labels.dtype in (torch.long, torch.int)
        return "single_label_classification" if is_class else "multi_label_classification"


AutoConfig.register(TransformerClassifierConfig.model_type, TransformerClassifierConfig)
AutoModelForSequenceClassification.register(TransformerClassifierConfig, TransformerForSequenceClassification)
TransformerForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
