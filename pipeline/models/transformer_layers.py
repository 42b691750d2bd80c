"""The parts of a Transformer: positions, attention, feed-forward block, encoder layer, decoder layer.

Shapes: B batch, S source length, T target length (or the queries' length), K keys' length, D = d_model, H heads,
E = D / H the width of one head.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

BLOCK = 128  # places that a flex kernel takes at a time
SHORT_SCORES = 128 * 128  # T * K up to which a CPU trains faster by whole matrices than by PyTorch's kernel


def sinusoidal_positions(position_ids: Tensor, d_model: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return position vectors PE(p, 2i) = sin(p / 10000^(2i/D)), PE(p, 2i+1) = cos(p / 10000^(2i/D)).

    Computed when asked for, so that no table ends and none has to survive saving and loading.

    Args:
        position_ids: any shape, (...).
        d_model: D, even.

    Returns:
        (..., D), computed in float32 whatever `dtype` it is returned in.

    Source: Vaswani et al. 2017, section 3.5.
    """
    even = torch.arange(0, d_model, 2, device=position_ids.device, dtype=torch.float32)
    angles = position_ids[..., None].float() * torch.exp(even * (-math.log(10000.0) / d_model))  # (..., D/2)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2).to(dtype)  # (..., D)


def positions_in_rows(rows: Tensor) -> Tensor:
    """Return the position of each place in its own row, (1, T); `rows` (1, T) numbers the row of each place, rising."""
    return torch.arange(rows.shape[-1], device=rows.device) - torch.searchsorted(rows, rows)


def rows_mask(query_rows: Tensor, key_rows: Tensor, dtype: torch.dtype, is_causal: bool = False) -> Tensor | BlockMask:
    """Mask rows that lie in one sequence, unpadded, from each other: each place attends only to places of its row.

    Args:
        query_rows, key_rows: the row of each place, (1, T) and (1, K), rising; on a GPU multiples of `BLOCK` long.
        is_causal: and to none behind it.

    Returns:
        On a GPU the mask of a flex kernel, which leaves out the blocks where no rows meet (Dong et al. 2024,
        https://arxiv.org/abs/2412.05496); elsewhere, as flex has no gradients there, one to add to the scores,
        (1, 1, T, K).
    """
    if not query_rows.is_cuda:
        allowed = query_rows[..., None] == key_rows[:, None]
        allowed = allowed.tril() if is_causal else allowed
        return to_bias(allowed, dtype)[None]
    return rows_block_mask(query_rows[0], key_rows[0], is_causal)


def to_bias(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what to add to the scores so that a query attends only where `allowed` is true, in the same shape."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)


def rows_block_mask(query_rows: Tensor, key_rows: Tensor, is_causal: bool) -> BlockMask:
    """Make the flex mask of `rows_mask` for rows (T) and (K) from the first and last row of each block, never T x K."""

    def attends(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        is_same = query_rows[query] == key_rows[key]
        return is_same & (key <= query) if is_causal else is_same

    queries, keys = query_rows.view(-1, BLOCK, 1), key_rows.view(-1, BLOCK)
    meets = (queries[:, 0] <= keys[:, -1]) & (keys[:, 0] <= queries[:, -1])  # (T / BLOCK, K / BLOCK)
    meets = meets.tril() if is_causal else meets
    key_blocks = meets.int().argsort(dim=-1, descending=True, stable=True).int()
    return BlockMask.from_kv_blocks(
        meets.sum(-1, dtype=torch.int32)[None, None],
        key_blocks[None, None],
        BLOCK_SIZE=BLOCK,
        mask_mod=attends,
        seq_lengths=(len(query_rows), len(key_rows)),
    )


class Dropout(nn.Module):
    """Sets each number to zero with probability `p` in training and scales up the others (Srivastava et al. 2014).

    On the CPU, where PyTorch draws one Bernoulli number after another, sixteen bits of a random integer decide each,
    which takes much less time; `p` is rounded to a multiple of 2^-16 for that.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, states: Tensor) -> Tensor:
        # A compiler makes the random numbers together with what they are for.
        if states.device.type != "cpu" or torch.compiler.is_compiling() or not self.training or self.p == 0:
            return nn.functional.dropout(states, self.p, self.training)
        dropped = round(self.p * 2**16)
        num_draws = (states.numel() + 3) // 4  # each of 64 bits serves four places
        drawn = torch.empty(num_draws, dtype=torch.int64).random_(-(2**63), None)
        keep = drawn.view(torch.int16)[: states.numel()].view(states.shape) >= dropped - 2**15
        # A product with int8 is vectorised, one with bool is not; one byte a number is kept for the backward pass.
        return states * keep.view(torch.int8) * (2**16 / (2**16 - dropped))

    def extra_repr(self) -> str:
        return f"p={self.p}"


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """Compute softmax(Q K^T / sqrt(E)) V (Vaswani et al. 2017, equation 1).

    Args:
        query: (B, H, T, E). key, value: (B, H, K, E).
        attention_mask: added to the scores, broadcastable to (B, H, T, K): 0 to attend, very negative to ignore.

    Returns:
        The mixed values (B, T, H, E) and the attention weights (B, H, T, K).
    """
    scores = query @ key.transpose(-2, -1) * scaling  # (B, H, T, K)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1).to(query.dtype)  # whose sums are in float32, whatever the type
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class MultiHeadAttention(nn.Module):
    """Self-attention, or cross-attention when `source` is given (Vaswani et al. 2017, section 3.2.2).

    The kernel (eager, sdpa, flash, flex) is the one that `model.set_attn_implementation` chose, or that the mask needs,
    or that `output_attentions` needs in place of sdpa, which gives no weights.
    """

    def __init__(self, config: PreTrainedConfig, layer_idx: int | None = None, is_causal: bool = False):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = is_causal  # read by the sdpa and flash kernels
        self.head_dim = config.d_model // config.attention_heads
        self.scaling = self.head_dim**-0.5
        self.q_proj = nn.Linear(config.d_model, config.d_model)
        self.k_proj = nn.Linear(config.d_model, config.d_model)
        self.v_proj = nn.Linear(config.d_model, config.d_model)
        self.out_proj = nn.Linear(config.d_model, config.d_model)

    def forward(
        self,
        hidden_states: Tensor,  # (B, T, D)
        attention_mask: Tensor | BlockMask | None = None,
        source: Tensor | None = None,  # (B, S, D)
        past_key_values: EncoderDecoderCache | None = None,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attended states (B, T, D), and the weights (B, H, T, K) where the kernel gives them."""
        query = self._split_heads(self.q_proj(hidden_states))  # (B, H, T, E)
        key, value = self._keys_and_values(
            hidden_states if source is None else source, source is not None, past_key_values
        )
        beams = query.shape[0] // key.shape[0]  # `len` would fix the size of the batch in an export
        if beams > 1:  # of one source, whose keys are there once: they are queries of one row
            query = query.unflatten(0, (-1, beams)).transpose(1, 2).flatten(2, 3)  # (B, H, beams * T, E)
            attention_mask = self._mask_of_beams(attention_mask, query)
        kernel = "flex_attention" if isinstance(attention_mask, BlockMask) else self.config._attn_implementation
        is_step = past_key_values is not None
        if kernel == "sdpa" and (kwargs.get("output_attentions") or self._is_short(query, key, is_step)):
            kernel = "eager"
            if attention_mask is None and self.is_causal:
                length, num_keys = query.shape[2], key.shape[2]
                attention_mask = query.new_ones(length, num_keys, dtype=torch.bool).tril(num_keys - length)
            if isinstance(attention_mask, Tensor) and attention_mask.dtype == torch.bool:
                attention_mask = to_bias(attention_mask, query.dtype)
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(kernel, eager_attention)
        mixed, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.scaling,
            dropout=self.config.attention_dropout if self.training else 0.0,
            **kwargs,
        )  # (B, T, H, E)
        if beams > 1:
            mixed = mixed.unflatten(1, (beams, -1)).flatten(0, 1)
            if weights is not None:
                weights = weights.unflatten(2, (beams, -1)).transpose(1, 2).flatten(0, 1)
        return self.out_proj(mixed.flatten(-2)), weights

    def _mask_of_beams(self, mask: Tensor | BlockMask | None, query: Tensor) -> Tensor | None:
        """Return the mask of the beams of a source: one for all, or, as it is, one that has a line for each."""
        if not isinstance(mask, Tensor):
            return None
        return mask if mask.shape[-2] == query.shape[2] else mask[..., :1, :]

    def _is_short(self, query: Tensor, key: Tensor, is_step: bool) -> bool:
        """Tell where PyTorch's kernel, which takes each head of each row separately, costs more than the arithmetic."""
        if query.device.type != "cpu":
            return False
        if self.training:
            return query.shape[2] * key.shape[2] <= SHORT_SCORES
        return is_step and not torch.compiler.is_compiling() and query.shape[2] == 1

    def _keys_and_values(
        self, states: Tensor, is_cross_attention: bool, past_key_values: EncoderDecoderCache | None
    ) -> tuple[Tensor, Tensor]:
        if past_key_values is None:
            return self._split_heads(self.k_proj(states)), self._split_heads(self.v_proj(states))
        if not is_cross_attention:
            key, value = self._split_heads(self.k_proj(states)), self._split_heads(self.v_proj(states))
            return past_key_values.self_attention_cache.update(key, value, self.layer_idx)
        # The source does not change while a target is generated: its keys and values are computed once.
        if not past_key_values.is_updated.get(self.layer_idx):
            key, value = self._split_heads(self.k_proj(states)), self._split_heads(self.v_proj(states))
            past_key_values.cross_attention_cache.update(key, value, self.layer_idx)
            past_key_values.is_updated[self.layer_idx] = True
        layer = past_key_values.cross_attention_cache.layers[self.layer_idx]
        return layer.keys, layer.values

    def _split_heads(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, T, D) -> (B, H, T, E)


class FeedForward(nn.Module):
    """Two linear maps with an activation between them, for each position (Vaswani et al. 2017, equation 2)."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.d_model, config.ffn_dim)
        self.activation = ACT2FN[config.activation_function]
        self.dropout = Dropout(config.activation_dropout)
        self.fc2 = nn.Linear(config.ffn_dim, config.d_model)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.fc2(self.dropout(self.activation(self.fc1(hidden_states))))


class LayerNorm(nn.LayerNorm):
    """As torch's (Ba et al. 2016, https://arxiv.org/abs/1607.06450), with good gradients where types are mixed.

    For states in bfloat16 and weights in float32, torch's CPU kernel sums the gradients of the weights in bfloat16,
    which is far off for many tokens. Here the norm alone is torch's, and autograd sums the rest in float32.
    https://github.com/pytorch/pytorch/blob/v2.13.0/aten/src/ATen/native/cpu/layer_norm_kernel.cpp
    """

    def forward(self, states: Tensor) -> Tensor:
        if states.dtype == self.weight.dtype or states.device.type != "cpu":
            return super().forward(states)
        normed = nn.functional.layer_norm(states, self.normalized_shape, eps=self.eps)
        return torch.addcmul(self.bias.to(states.dtype), normed, self.weight.to(states.dtype))


class Residual(nn.Module):
    """x + dropout(block(norm(x))) under pre-norm, norm(x + dropout(block(x))) under post-norm.

    Called before the block for what that reads, and after it with what that gave. (A block to call would be one more
    input, and tools that move the inputs of a module to its device would move it.)
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.pre_norm = config.pre_norm
        self.norm = LayerNorm(config.d_model)
        self.dropout = Dropout(config.dropout)

    def forward(self, hidden_states: Tensor, output: Tensor | None = None) -> Tensor:
        if output is None:
            return self.norm(hidden_states) if self.pre_norm else hidden_states
        hidden_states = hidden_states + self.dropout(output)
        return hidden_states if self.pre_norm else self.norm(hidden_states)


class EncoderLayer(GradientCheckpointingLayer):
    """Self-attention over the source, then the feed-forward block."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.self_attn = MultiHeadAttention(config)
        self.self_attn_residual = Residual(config)
        self.feed_forward = FeedForward(config)
        self.feed_forward_residual = Residual(config)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs) -> Tensor:
        attended, _ = self.self_attn(self.self_attn_residual(hidden_states), attention_mask, **kwargs)
        hidden_states = self.self_attn_residual(hidden_states, attended)
        output = self.feed_forward(self.feed_forward_residual(hidden_states))
        return self.feed_forward_residual(hidden_states, output)  # (B, S, D)


class DecoderLayer(GradientCheckpointingLayer):
    """Masked self-attention over the target, cross-attention to the source, then the feed-forward block."""

    def __init__(self, config: PreTrainedConfig, layer_idx: int):
        super().__init__()
        self.self_attn = MultiHeadAttention(config, layer_idx, is_causal=True)
        self.self_attn_residual = Residual(config)
        self.cross_attn = MultiHeadAttention(config, layer_idx)
        self.cross_attn_residual = Residual(config)
        self.feed_forward = FeedForward(config)
        self.feed_forward_residual = Residual(config)

    def forward(
        self,
        hidden_states: Tensor,  # (B, T, D)
        source: Tensor,  # (B, S, D); positional, as gradient checkpointing sees positional tensors only
        attention_mask: Tensor | None = None,
        source_attention_mask: Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        **kwargs,
    ) -> Tensor:
        attended, _ = self.self_attn(
            self.self_attn_residual(hidden_states), attention_mask, past_key_values=past_key_values, **kwargs
        )
        hidden_states = self.self_attn_residual(hidden_states, attended)
        attended, _ = self.cross_attn(
            self.cross_attn_residual(hidden_states),
            source_attention_mask,
            source=source,
            past_key_values=past_key_values,
            **kwargs,
        )
        hidden_states = self.cross_attn_residual(hidden_states, attended)
        output = self.feed_forward(self.feed_forward_residual(hidden_states))
        return self.feed_forward_residual(hidden_states, output)  # (B, T, D)
