"""A stacked LSTM as a language model, whose state is carried on: over batches in training, over tokens in generation.

Shapes: B batch, T tokens, W embedding size, H width of a layer's state, V vocabulary.
"""

import itertools

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_lstm import LSTMConfig

IGNORED = -100  # the label that carries no loss, as everywhere in transformers


class LSTMState:
    """Hidden and cell state of every layer, (B, H) each: what `generate` keeps in place of keys and values.

    Not a `transformers.cache_utils.Cache`, which holds keys and values; but it has what `generate` asks of one.

    Args:
        hidden, cell: of the layers, from the first to the last.
        length: tokens that were read to come to it, padding included.
    """

    is_compileable = False  # asked by `generate`

    def __init__(self, hidden: list[Tensor], cell: list[Tensor], length: int = 0):
        self.hidden, self.cell, self.length = hidden, cell, length

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def detach(self) -> "LSTMState":
        """Return the same values without their history: truncated back-propagation ends here."""
        return LSTMState(
            [layer_state.detach() for layer_state in self.hidden],
            [layer_state.detach() for layer_state in self.cell],
            self.length,
        )

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the rows in place, for beam search: row i goes on from what was row beam_idx[i]."""
        self.hidden = [layer_state[beam_idx] for layer_state in self.hidden]
        self.cell = [layer_state[beam_idx] for layer_state in self.cell]


class LSTMPreTrainedModel(PreTrainedModel):
    config: LSTMConfig
    _is_stateful = True  # there is no way back to an earlier token, as assisted generation would need

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.LSTM):
            bound = module.hidden_size**-0.5
            for name, parameter in module.named_parameters():
                init.uniform_(parameter, -bound, bound)
                if name == "bias_ih_l0":  # in torch's order of gates the second quarter is the forget gate's
                    # 1 lets gradients through from the start (Jozefowicz et al. 2015, section 2.2,
                    # https://proceedings.mlr.press/v37/jozefowicz15.html).
                    init.copy_(parameter, torch.arange(4).eq(1).repeat_interleave(module.hidden_size).to(parameter))
        elif isinstance(module, nn.Embedding):
            init.uniform_(module.weight, -0.1, 0.1)
        elif isinstance(module, nn.Linear):
            init.uniform_(module.weight, -0.1, 0.1)
            if module.bias is not None:
                init.zeros_(module.bias)


class LSTMForCausalLM(LSTMPreTrainedModel, GenerationMixin):
    """Embedding, stacked LSTM and output projection, with the loss of the next token."""

    _tied_weights_keys = {"lm_head.weight": "embed_tokens.weight"}
    accepts_loss_kwargs = True  # tells Trainer to count the targets of the whole step and pass num_items_in_batch

    def __init__(self, config: LSTMConfig):
        super().__init__(config)
        # The loss is computed here, with targets that may be shifted already; `super` goes by the name of the class.
        self.loss_type = "ForMaskedLM"
        self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size)
        sizes = [config.embedding_size, *config.layer_sizes]
        self.layers = nn.ModuleList(
            [nn.LSTM(before, after, batch_first=True) for before, after in itertools.pairwise(sizes)]
        )
        self.dropout = nn.Dropout(config.dropout)
        self.embedding_dropout = nn.Dropout(config.embedding_dropout)
        self.lm_head = nn.Linear(sizes[-1], config.vocab_size)
        if config.tie_word_embeddings:
            self._keys_to_ignore_on_save = list(self._tied_weights_keys)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embed_tokens = value

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # so that `generate` makes none of keys and values

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: LSTMState | None = None,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast | tuple:
        """Score every next token.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T so far), 1 for real tokens and 0 for padding, which leaves the state as it is.
            past_key_values: the state from which to go on; zero when left out.
            labels: (B, T), the tokens themselves, as for every causal model of transformers; shifted here.
            shift_labels: (B, T), the token behind each, -100 where no loss is due; taken in place of `labels`.
            num_items_in_batch: divides the summed loss: the number of targets in the whole optimizer step. The targets
                of this batch when left out.

        Returns:
            `logits` (B, T, V), `past_key_values` behind the last token, and `loss` in nats per target.

        Raises:
            ValueError: for a prompt without tokens, or a row with only padding.
        """
        if input_ids.shape[1] == 0:
            raise ValueError(
                "input_ids has no token: give a prompt of one at least, such as the token that begins a text"
            )
        states = self.embedding_dropout(self.embed_tokens(input_ids))  # (B, T, W)
        order, lengths = _real_tokens_first(attention_mask, input_ids.shape[1])
        if order is not None:
            states = torch.take_along_dim(states, order[..., None], 1)
        hidden, cell = [], []
        for number, layer in enumerate(self.layers):
            start_state = None
            if past_key_values is not None:
                start_state = (past_key_values.hidden[number][None], past_key_values.cell[number][None])
            # In float32 on CPUs: under autocast PyTorch asks for a bfloat16 LSTM, which those without AVX-512 lack.
            with torch.autocast("cpu", enabled=False):
                states, (last_hidden, last_cell) = _run(layer, states, start_state, lengths)  # (B, T, H)
            states = self.dropout(states)
            hidden.append(last_hidden[0])
            cell.append(last_cell[0])
        if order is not None:
            states = torch.take_along_dim(states, order.argsort(1)[..., None], 1)  # every token where it was
        logits = self.lm_head(states)  # (B, T, V)
        if shift_labels is None and labels is not None:
            shift_labels = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
        length = input_ids.shape[1] + (0 if past_key_values is None else past_key_values.length)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        result = CausalLMOutputWithPast(
            loss=None if shift_labels is None else self._loss(logits, shift_labels, num_items_in_batch),
            logits=logits,
            past_key_values=LSTMState(hidden, cell, length) if use_cache else None,
        )
        return result.to_tuple() if return_dict is False else result

    def _loss(self, logits: Tensor, targets: Tensor, num_items: Tensor | int | None) -> Tensor:
        total = nn.functional.cross_entropy(
            logits.flatten(0, 1).float(),  # (B * T, V)
            targets.flatten(),
            ignore_index=IGNORED,
            label_smoothing=float(self.config.label_smoothing) if self.training else 0.0,
            reduction="sum",
        )
        return total / (targets.ne(IGNORED).sum() if num_items is None else num_items)


def _real_tokens_first(attention_mask: Tensor | None, width: int) -> tuple[Tensor | None, Tensor | None]:
    """Return the positions (B, T) that move padding behind the real tokens, and the number of these (B,).

    Without padding both are None.
    """
    if attention_mask is None:
        return None, None
    mask = attention_mask[:, -width:].bool()  # what came before is in the state
    if bool(mask.all()):
        return None, None
    lengths = mask.sum(1)
    if not bool(lengths.all()):
        raise ValueError("attention_mask: a row has no real token; leave it out of the batch")
    return mask.long().argsort(dim=1, descending=True, stable=True), lengths.cpu()  # as packing wants it


def _run(
    layer: nn.Module, states: Tensor, start_state: tuple[Tensor, Tensor] | None, lengths: Tensor | None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Run one `nn.LSTM` over (B, T, W); of each row only the first `lengths` tokens are read."""
    if lengths is None:
        return layer(states, start_state)
    packed = nn.utils.rnn.pack_padded_sequence(states, lengths, batch_first=True, enforce_sorted=False)
    output, last = layer(packed, start_state)
    padded, _ = nn.utils.rnn.pad_packed_sequence(output, batch_first=True, total_length=states.shape[1])
    return padded, last


AutoConfig.register(LSTMConfig.model_type, LSTMConfig)
AutoModelForCausalLM.register(LSTMConfig, LSTMForCausalLM)
LSTMForCausalLM.register_for_auto_class("AutoModelForCausalLM")
