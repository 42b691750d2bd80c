"""A stacked LSTM as a language model, whose state is carried on: over batches in training, over tokens in generation.

Shapes: B batch, T tokens, W embedding size, H width of a layer's state, V vocabulary.
"""

import itertools
from collections.abc import Iterable
from os import PathLike

import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan
from torch.utils import _pytree as pytree
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.output_capturing import capture_outputs

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


def _flatten(state: LSTMState) -> tuple[list[Tensor], int]:
    return [*state.hidden, *state.cell], len(state.hidden)


def _flatten_with_keys(state: LSTMState) -> tuple[list[tuple[pytree.KeyEntry, Tensor]], int]:
    tensors, num_layers = _flatten(state)
    return [(pytree.SequenceKey(index), tensor) for index, tensor in enumerate(tensors)], num_layers


def _unflatten(tensors: Iterable[Tensor], num_layers: int) -> LSTMState:
    tensors = list(tensors)
    return LSTMState(tensors[:num_layers], tensors[num_layers:])


# So that `torch.export` takes a state and gives one back, as its tensors: an exported step knows no length, which would
# be a constant there, and needs none.
pytree.register_pytree_node(
    LSTMState,
    _flatten,
    _unflatten,
    serialized_type_name=f"{LSTMState.__module__}.{LSTMState.__qualname__}",
    flatten_with_keys_fn=_flatten_with_keys,
)


class VariationalDropout(nn.Dropout):
    """Dropout of states (B, T, H) whose mask is the same at every token.

    Source: Gal and Ghahramani 2016, https://arxiv.org/abs/1512.05287.
    """

    def forward(self, states: Tensor) -> Tensor:
        return states * super().forward(torch.ones_like(states[:, :1])) if self.training else states


class LSTMLayer(nn.RNNBase):
    """One LSTM layer, which passes over padding.

    Its parameters are those of `nn.LSTM`, as which `torch.compile` refuses a module:
    https://github.com/pytorch/pytorch/blob/v2.13.0/torch/_dynamo/variables/builder.py
    """

    weight_ih_l0: nn.Parameter  # (4 * H, W)
    weight_hh_l0: nn.Parameter  # (4 * H, H)
    bias_ih_l0: nn.Parameter  # (4 * H)
    bias_hh_l0: nn.Parameter

    def __init__(self, input_size: int, hidden_size: int, weight_dropout: float = 0.0):
        super().__init__("LSTM", input_size, hidden_size, batch_first=True)
        self.weight_dropout = weight_dropout

    def forward(
        self, states: Tensor, hidden: Tensor, cell: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Read `states` (B, T, W), where `mask` (B, T) is true, from the state `hidden` and `cell` (B, H) each.

        Returns:
            The outputs (B, T, H), zeros at padding, and the last hidden and cell state, (B, H) each.
        """
        # In float32 on CPUs: under autocast PyTorch asks for a bfloat16 LSTM, which those without AVX-512 lack.
        with torch.autocast("cpu", enabled=False):
            if torch.compiler.is_compiling():
                return self._step_by_step(states, hidden, cell, mask)
            if mask is not None:
                return self._read_packed(states, hidden, cell, mask)
            states, hidden, cell = torch.lstm(
                states, (hidden[None], cell[None]), self._weights(), True, 1, 0.0, self.training, False, True
            )
            return states, hidden[0], cell[0]

    def _weights(self) -> list[Tensor]:
        """Return the weights; while training, those from state to state with dropout, which all tokens share.

        As whole matrices, so that one kernel still reads all tokens.
        """
        weights: list[Tensor] = [self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0]
        if not (self.training and self.weight_dropout):
            return weights
        weights[1] = nn.functional.dropout(weights[1], self.weight_dropout)
        # In one piece of memory, as cuDNN takes them; from several it copies them itself, with a warning.
        flat = torch.cat([weight.flatten() for weight in weights])
        parts = flat.split([weight.numel() for weight in weights])
        return [part.view_as(weight) for part, weight in zip(parts, weights, strict=True)]

    def _read_packed(self, states: Tensor, hidden: Tensor, cell: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Read only the real tokens, which are moved before the padding for that."""
        order = mask.long().argsort(dim=1, descending=True, stable=True)
        states = torch.take_along_dim(states, order[..., None], 1)
        packed = nn.utils.rnn.pack_padded_sequence(states, mask.sum(1).cpu(), batch_first=True, enforce_sorted=False)
        start = (hidden[packed.sorted_indices][None], cell[packed.sorted_indices][None])
        data, hidden, cell = torch.lstm(
            packed.data, packed.batch_sizes, start, self._weights(), True, 1, 0.0, self.training, False
        )
        packed = nn.utils.rnn.PackedSequence(data, *packed[1:])
        output, _ = nn.utils.rnn.pad_packed_sequence(packed, batch_first=True, total_length=states.shape[1])
        output = torch.take_along_dim(output, order.argsort(1)[..., None], 1)  # every token where it was
        return output, hidden[0, packed.unsorted_indices], cell[0, packed.unsorted_indices]

    def _step_by_step(
        self, states: Tensor, hidden: Tensor, cell: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Read by operations that a graph can hold; in one of `torch.lstm` the length would be a constant."""
        weight_ih, weight, bias_ih, bias_hh = self._weights()
        gates = nn.functional.linear(states, weight_ih, bias_ih + bias_hh)  # (B, T, 4 * H)
        if mask is None:
            mask = torch.ones_like(gates[..., 0], dtype=torch.bool)

        def step(state: tuple[Tensor, Tensor], token: tuple[Tensor, Tensor]) -> tuple[tuple[Tensor, Tensor], Tensor]:
            (hidden, cell), (inputs, real) = state, token
            input_gate, forget_gate, new, output_gate = (inputs + hidden @ weight.t()).chunk(4, -1)  # (B, H) each
            new_cell = forget_gate.sigmoid() * cell + input_gate.sigmoid() * new.tanh()
            new_hidden = output_gate.sigmoid() * new_cell.tanh()
            state = (torch.where(real, new_hidden, hidden), torch.where(real, new_cell, cell))
            return state, new_hidden.masked_fill(~real, 0)

        if torch.compiler.is_exporting() and states.shape[1] > 1:  # for any length
            (hidden, cell), output = scan(step, (hidden, cell), (gates.transpose(0, 1), mask.t()[..., None]))
            return output.transpose(0, 1), hidden, cell
        # Not by scan, of which the compiler of PyTorch 2.13 makes wrong gradients.
        outputs = []
        for token in zip(gates.unbind(1), mask[..., None].unbind(1), strict=True):
            (hidden, cell), output = step((hidden, cell), token)
            outputs.append(output)
        return torch.stack(outputs, 1), hidden, cell


class LSTMPreTrainedModel(PreTrainedModel):
    config: LSTMConfig
    _no_split_modules = ["LSTMLayer"]
    _can_record_outputs = {"hidden_states": LSTMLayer}
    _is_stateful = True  # there is no way back to an earlier token, as assisted generation would need

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, LSTMLayer):
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
        self.loss_type = "ForCausalLM"  # tells Trainer that the first of `labels` is no target
        self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size)
        sizes = [config.embedding_size, *config.layer_sizes]
        self.layers = nn.ModuleList(
            [LSTMLayer(before, after, float(config.weight_dropout)) for before, after in itertools.pairwise(sizes)]
        )
        dropout = VariationalDropout if config.variational_dropout else nn.Dropout
        self.dropout = dropout(config.dropout)
        self.embedding_dropout = dropout(config.embedding_dropout)
        self.lm_head = nn.Linear(sizes[-1], config.vocab_size)
        if config.tie_word_embeddings:
            self._keys_to_ignore_on_save = list(self._tied_weights_keys)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embed_tokens = value

    def save_pretrained(self, save_directory: str | PathLike, *args, **kwargs) -> None:
        """Save as `PreTrainedModel` does; both of the tied weights where they are no longer one.

        They are not after an adapter of one of them was merged. transformers then does not tie what it loads, and the
        config still has to say that the last layer is as wide as the embedding.
        """
        weight = getattr(self.lm_head, "weight", None)
        if (
            self._keys_to_ignore_on_save
            and isinstance(weight, Tensor)
            and weight.data_ptr() != self.embed_tokens.weight.data_ptr()
        ):
            self.config.tie_word_embeddings = True
            self._keys_to_ignore_on_save = []
        super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # so that `generate` makes none of keys and values

    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: LSTMState | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        inputs_embeds: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Score every next token.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T so far), 1 for real tokens and 0 for padding, which leaves the state as it is.
            past_key_values: the state from which to go on; zero when left out.
            labels: (B, T), the tokens themselves, as for every causal model of transformers; shifted here.
            num_items_in_batch: divides the summed loss: the number of targets in the whole optimizer step. The targets
                of this batch when left out.
            inputs_embeds: (B, T, W), vectors in place of the ids, as `get_input_embeddings()` would give them.
            logits_to_keep: return the logits of so many of the last tokens, or of those at these places; all if 0.
            shift_labels: (B, T), the token behind each, -100 where no loss is due; taken in place of `labels`. Among
                the keyword arguments, as Trainer wants every label that the signature names.
            output_hidden_states: return the token vectors (B, T, W) and the outputs (B, T, H) of every layer, before
                dropout.

        Returns:
            `logits` (B, T, V), `past_key_values` behind the last token, and `loss` in nats per target.

        Raises:
            TypeError: for a keyword argument that it does not know.
            ValueError: for a prompt without tokens, a row with only padding, both ids and vectors or neither, or
                attentions, which an LSTM does not have.
        """
        shift_labels = _take_shift_labels(**kwargs)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give input_ids, or vectors in place of them as inputs_embeds, and not both")
        states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds  # (B, T, W)
        batch_size, width = states.shape[:2]
        if width == 0:
            raise ValueError(
                "input_ids has no token: give a prompt of one at least, such as the token that begins a text"
            )
        states = self.embedding_dropout(self._drop_words(states, input_ids))
        mask = _mask(attention_mask, width)
        if past_key_values is None:
            hidden, cell = ([states.new_zeros(batch_size, layer.hidden_size) for layer in self.layers] for _ in "hc")
            past_key_values = LSTMState(hidden, cell)
        elif not isinstance(past_key_values, LSTMState):
            raise ValueError(
                f"past_key_values is a {type(past_key_values).__name__}: an LSTM goes on from its LSTMState, "
                "and has no keys and values, as of a prefix"
            )
        hidden, cell = [], []
        for layer, *start in zip(self.layers, past_key_values.hidden, past_key_values.cell, strict=True):
            states, last_hidden, last_cell = layer(states, *start, mask)  # (B, T, H)
            states = self.dropout(states)
            hidden.append(last_hidden)
            cell.append(last_cell)
        if shift_labels is None and labels is not None:
            shift_labels = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        if shift_labels is None:
            loss, logits = None, self.lm_head(states[:, kept])  # (B, T, V)
        else:
            logits = self.lm_head(states)  # as the loss is of all tokens
            loss = self._loss(logits, shift_labels, num_items_in_batch)
            logits = logits[:, kept]
        use_cache = self.config.use_cache if use_cache is None else use_cache
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=LSTMState(hidden, cell, past_key_values.length + width) if use_cache else None,
        )

    def _drop_words(self, vectors: Tensor, input_ids: Tensor | None) -> Tensor:
        """Drop vectors (B, T, W) while training: those of whole words, wherever they stand; none without ids."""
        if input_ids is None or not (self.training and self.config.word_dropout):
            return vectors
        kept = nn.functional.dropout(vectors.new_ones(self.config.vocab_size), float(self.config.word_dropout))
        return vectors * kept[input_ids][..., None]

    def _loss(self, logits: Tensor, targets: Tensor, num_items: Tensor | int | None) -> Tensor:
        total = nn.functional.cross_entropy(
            logits.flatten(0, 1).float(),  # (B * T, V)
            targets.flatten(),
            ignore_index=IGNORED,
            label_smoothing=float(self.config.label_smoothing) if self.training else 0.0,
            reduction="sum",
        )
        return total / (targets.ne(IGNORED).sum() if num_items is None else num_items)


def _take_shift_labels(
    shift_labels: Tensor | None = None,
    output_hidden_states: bool | None = None,  # taken by `capture_outputs`
    output_attentions: bool | None = None,
) -> Tensor | None:
    """Return the one keyword argument that is not in the signature of `forward`; Python refuses unknown ones."""
    if output_attentions:
        raise ValueError("output_attentions: an LSTM has none")
    return shift_labels


def _mask(attention_mask: Tensor | None, width: int) -> Tensor | None:
    """Return where the last `width` tokens are real, (B, T); None without padding."""
    if attention_mask is None:
        return None
    mask = attention_mask[:, -width:].bool()  # what came before is in the state
    if torch.compiler.is_compiling():  # a graph cannot depend on values
        return mask
    if bool(mask.all()):
        return None
    if not bool(mask.any(1).all()):
        raise ValueError("attention_mask: a row has no real token; leave it out of the batch")
    return mask


AutoConfig.register(LSTMConfig.model_type, LSTMConfig)
AutoModelForCausalLM.register(LSTMConfig, LSTMForCausalLM)
LSTMForCausalLM.register_for_auto_class("AutoModelForCausalLM")
