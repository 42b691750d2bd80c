"""The steps of a decoder in a search: what it says next of all rows that go on, by its cache.

Shapes: B rows that go on, K beams, L tokens so far, C copies of each source, S source length, H heads, E width of one,
V vocabulary.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

LEAST = 16  # places that are attended to at least: a CPU takes several times as long for a softmax of fewer


class Steps:
    """Steps of a model whose beams have a source, and a cache, each."""

    def __init__(self, model: PreTrainedModel, source: Tensor, attention_mask: Tensor, beams: int):
        """Begin with a source (B * C, S, D) and its mask (B * C, S)."""
        self.model, self.source, self.attention_mask, self.beams = model, source, attention_mask, beams
        self.cache = EncoderDecoderCache(DynamicCache(config=model.config), DynamicCache(config=model.config))

    def next_logits(self, new_ids: Tensor) -> Tensor:
        """Read the next tokens of all sequences, (B * K, T), and return the logits of those behind, (B * K, V)."""
        return self._forward(new_ids)

    def reorder(self, origin: Tensor) -> None:
        """Go on with these beams of each row, (B, K)."""
        first = torch.arange(len(origin), device=origin.device) * self.beams
        self.cache.self_attention_cache.reorder_cache((first[:, None] + origin).flatten())

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows, in this order."""
        places = (rows[:, None] * self.beams + torch.arange(self.beams, device=rows.device)).flatten()
        self.cache.batch_select_indices(places)
        self.source, self.attention_mask = self.source[places], self.attention_mask[places]

    def _forward(self, new_ids: Tensor, decoder_attention_mask: Tensor | None = None) -> Tensor:
        outputs = self.model(
            decoder_input_ids=new_ids,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=BaseModelOutput(self.source),
            attention_mask=self.attention_mask,
            past_key_values=self.cache,
            use_cache=True,
        )
        return outputs.logits[:, -1].float()


class SharedSteps(Steps):
    """Steps of a model whose beams share one copy of their source, and one cache.

    The keys and values of all beams of a row stay where they are. A mask says which of them each beam descends from, so
    beams change places by changing rows of the mask. The first token, at which all beams are alike, is there once. With
    K = 2, where both beams go on from the second after the second token, each reads behind its third token

                 token 1     token 2        token 3
        beam 1     [1]       [-, 2]         [1, -]
        beam 2     [1]       [-, 2]         [-, 2]
    """

    def __init__(self, model: PreTrainedModel, source: Tensor, attention_mask: Tensor, beams: int):
        missing = max(0, LEAST - source.shape[1])
        source = nn.functional.pad(source, (0, 0, 0, missing))
        attention_mask = nn.functional.pad(attention_mask, (0, missing))
        bias = to_bias(attention_mask.bool()[:, None, None], source.dtype)  # (B, 1, 1, S)
        super().__init__(model, source, bias, beams)
        self.cache = EncoderDecoderCache(Cache(layer_class_to_replicate=SideBySide), DynamicCache())
        self.ancestors = source.new_zeros(len(source), 1, 1, 0)  # (B, 1, K, places), to be added to the scores
        self.itself = to_bias(torch.eye(beams, dtype=torch.bool, device=source.device), source.dtype)  # (K, K)

    def next_logits(self, new_ids: Tensor) -> Tensor:
        is_first = not self.ancestors.shape[-1]
        if is_first:
            new_ids = new_ids[:: self.beams]
        for ids in new_ids.split(1, dim=1):
            alike = len(ids) // len(self.ancestors)
            own = self.itself[:alike, :alike].expand(len(self.ancestors), 1, -1, -1)
            self.ancestors = torch.cat([self.ancestors, own], -1)
            missing = max(0, LEAST - self.ancestors.shape[-1])
            unused = torch.finfo(self.ancestors.dtype).min
            logits = self._forward(ids, nn.functional.pad(self.ancestors, (0, missing), value=unused))
        if is_first:
            self.ancestors = self.ancestors.expand(-1, -1, self.beams, -1)
            logits = logits.repeat_interleave(self.beams, 0)
        return logits

    def reorder(self, origin: Tensor) -> None:
        self.ancestors = self.ancestors.gather(2, origin[:, None, :, None].expand_as(self.ancestors))

    def keep(self, rows: Tensor) -> None:
        moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero().squeeze(1)
        for cache in (self.cache.self_attention_cache, self.cache.cross_attention_cache):
            for layer in cache.layers:
                layer.keys, layer.values = (_move(states, rows, moved) for states in (layer.keys, layer.values))
        self.source, self.attention_mask, self.ancestors = (
            tensor[rows] for tensor in (self.source, self.attention_mask, self.ancestors)
        )


class SideBySide(DynamicLayer):
    """Keys and values of all beams of each row, token by token: (B, H, places, E), with room for more."""

    is_initialized: bool  # as transformers, which mypy skips, has them
    keys: Tensor
    values: Tensor

    def __init__(self):
        super().__init__()
        self.length = self.end = 0  # in tokens, and in places

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Add those of the next token of all sequences, and return all, (B, H, places, E).

        Args:
            key_states, value_states: (B, H, 1, E) of the first token; later (B, H, 1, E), or (B * K, H, 1, E).
        """
        if not self.is_initialized:
            self.keys, self.values = _zeros(key_states), _zeros(value_states)
            self.is_initialized = True
        begin, self.end = self.end, self.end + len(key_states) // len(self.keys)
        if self.end > self.keys.shape[2]:
            self.keys, self.values = (_with_room(states, 2 * self.end) for states in (self.keys, self.values))
        self.keys[:, :, begin : self.end] = self._by_rows(key_states)
        self.values[:, :, begin : self.end] = self._by_rows(value_states)
        self.length += 1
        end = max(self.end, LEAST)
        return self.keys[:, :, :end], self.values[:, :, :end]

    def _by_rows(self, states: Tensor) -> Tensor:
        return states.squeeze(2).unflatten(0, (len(self.keys), -1)).transpose(1, 2)  # (B, H, K, E)

    def get_seq_length(self) -> int:
        return self.length


def steps_of(model: PreTrainedModel, source: Tensor, attention_mask: Tensor, beams: int) -> Steps:
    """Begin the steps of a model."""
    shares = getattr(model, "shares_source", False)
    return (SharedSteps if shares else Steps)(model, source, attention_mask, beams)


def to_bias(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what to add to the scores so that a query attends only where `allowed` is true, in the same shape."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)


def _move(states: Tensor, rows: Tensor, moved: Tensor) -> Tensor:
    """Keep these rows, of which only some have another place than before, in place."""
    states[moved] = states[rows[moved]]
    return states[: len(rows)]


def _zeros(states: Tensor) -> Tensor:
    """Make the first places for states (B, H, 1, E): zeros, as they are read under a mask before they are written."""
    rows, heads, _, width = states.shape
    return states.new_zeros(rows, heads, LEAST, width)


def _with_room(states: Tensor, places: int) -> Tensor:
    """Return states with so many places in all; those behind them are never read before they are written."""
    rows, heads, used, width = states.shape
    larger = states.new_empty(rows, heads, places, width)
    larger[:, :, :used] = states
    return larger
