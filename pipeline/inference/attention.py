"""Walk one pair through the equations of the Transformer, with the numbers of a trained model.

Shapes: S source length, T target length, K keys' length, D = d_model, H heads, E = D / H the width of one head.
Equations are those of Vaswani et al. 2017 (https://arxiv.org/abs/1706.03762). Losses are in nats.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from tokenizers import decoders
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.data.rows import BadRow
from pipeline.errors import ConfigError, RunError
from pipeline.models.modeling_seq2seq import IGNORED, Seq2SeqTransformerForConditionalGeneration
from pipeline.models.transformer_layers import sinusoidal_positions
from pipeline.tasks.base import Batch, Task
from pipeline.tasks.sequence_to_sequence import SequenceToSequence

MAX_TOKENS = 256  # of a side, as every weight of every head is drawn
CANDIDATES = 5
TOLERANCE = 1e-3  # nats, on the summed loss; in float32 the two ways differ by some 1e-6


@dataclass(frozen=True)
class EmbeddedSequence:
    """A sequence as the encoder or the decoder reads it; all tensors are (T, D)."""

    tokens: list[str]
    ids: list[int]
    vectors: Tensor  # token embeddings times sqrt(D)
    positions: Tensor
    inputs: Tensor  # what the first layer really received: the sum of both


@dataclass(frozen=True)
class Attention:
    """One attention of one layer, as it was computed. The masked weights of the future are 0."""

    queries: Tensor  # (H, T, E)
    keys: Tensor  # (H, K, E)
    values: Tensor  # (H, K, E)
    weights: Tensor  # (H, T, K)

    @property
    def scores(self) -> Tensor:
        """Q K^T / sqrt(E), before mask and softmax: (H, T, K)."""
        return self.queries @ self.keys.transpose(-2, -1) / math.sqrt(self.queries.shape[-1])


@dataclass(frozen=True)
class Step:
    """What the decoder predicts after `<s> y_1 .. y_(t-1)`."""

    candidates: list[tuple[int, str, float]]  # id, token and probability of the most probable, best first
    token: str  # the right one, y_t
    token_id: int
    probability: float
    rank: int  # 1 is the most probable
    loss: float  # -log p


@dataclass(frozen=True)
class Trace:
    """All numbers of a pair, on the CPU in float32. The attentions are one a layer, from the first to the last."""

    model_name: str
    num_parameters: int
    encoder_layers: int
    decoder_layers: int
    heads: int
    d_model: int
    source_text: str
    target_text: str
    source: EmbeddedSequence  # x_1 .. x_n </s>
    decoder_input: EmbeddedSequence  # <s> y_1 .. y_m, with the language behind <s> where the decoder is told it
    target_tokens: list[str]  # y_1 .. y_m </s>
    target_ids: list[int]
    encoder_attentions: list[Attention]
    decoder_attentions: list[Attention]
    cross_attentions: list[Attention]
    steps: list[Step]
    parallel_loss: float  # per target, of one forward pass with labels
    generated_text: str
    generated_tokens: list[str]
    generated_ids: list[int]

    @property
    def summed_loss(self) -> float:
        """The losses of the steps, one after the other, added up."""
        return math.fsum(step.loss for step in self.steps)

    @property
    def parallel_summed_loss(self) -> float:
        return self.parallel_loss * len(self.target_ids)


@torch.no_grad()
def trace(
    model: PreTrainedModel,
    task: Task,
    source: str,
    target: str,
    source_lang: str | None = None,
    target_lang: str | None = None,
) -> Trace:
    """Run the pair through the model: in parallel, step by step under teacher forcing, and greedily without it.

    A copy of the model does so, in float32 and with the eager kernel, the only one that returns its weights.

    Args:
        source_lang, target_lang: where the model is told languages; its default ones if left out.

    Raises:
        ConfigError: when the model is not an encoder-decoder of this project, or source or target is not a text,
            or has too many tokens.
        RunError: when the losses of the steps do not add up to the loss of the parallel pass.
    """
    if not isinstance(model, Seq2SeqTransformerForConditionalGeneration) or not isinstance(task, SequenceToSequence):
        raise ConfigError(
            f"this checkpoint holds a {type(model).__name__}, where a "
            f"{Seq2SeqTransformerForConditionalGeneration.__name__} of this project is needed, as the trace knows its "
            "modules by name"
        )
    tokenizer = task.tokenizer
    columns = {"source": [source], "target": [target], "row": [0]}
    feature = task.encode(task.with_languages(columns, source_lang, target_lang))[0]
    if isinstance(feature, BadRow):
        raise ConfigError(f"{feature.reason}: give a source and a target to trace")
    if (longest := max(task.lengths(feature))) > MAX_TOKENS:
        raise ConfigError(f"a text of {longest} tokens is too long to show; give at most {MAX_TOKENS}")
    model = copy.deepcopy(model).float().eval()
    model.set_attn_implementation("eager")
    batch = {name: tensor.to(model.device) for name, tensor in task.collate([feature]).items()}
    with record_projections(model) as records:
        outputs = model(**batch, output_attentions=True)
    heads = model.config.attention_heads
    decoder_input_ids = batch.get("decoder_input_ids")
    if decoder_input_ids is None:
        decoder_input_ids = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    ids = generate_greedily(model, task, batch)
    result = Trace(
        model_name=model.name_or_path or type(model).__name__,
        num_parameters=model.num_parameters(),
        encoder_layers=model.config.encoder_layers,
        decoder_layers=model.config.decoder_layers,
        heads=heads,
        d_model=model.config.d_model,
        source_text=source,
        target_text=target,
        source=embed_sequence(model.encoder.embed_tokens, batch["input_ids"], tokenizer, records["encoder.layers.0"]),
        decoder_input=embed_sequence(
            model.decoder.embed_tokens, decoder_input_ids, tokenizer, records["decoder.layers.0"]
        ),
        target_tokens=readable_tokens(tokenizer, feature["labels"]),
        target_ids=feature["labels"],
        encoder_attentions=collect_attentions(
            "encoder.layers.{}.self_attn", outputs.encoder_attentions, records, heads
        ),
        decoder_attentions=collect_attentions(
            "decoder.layers.{}.self_attn", outputs.decoder_attentions, records, heads
        ),
        cross_attentions=collect_attentions("decoder.layers.{}.cross_attn", outputs.cross_attentions, records, heads),
        steps=list(forced_steps(model, tokenizer, batch, decoder_input_ids)),
        parallel_loss=outputs.loss.item(),
        generated_text=tokenizer.decode(ids, skip_special_tokens=True),
        generated_tokens=readable_tokens(tokenizer, ids),
        generated_ids=ids,
    )
    # `not <=` rather than `>`, so that a loss of NaN fails as well.
    if not abs(result.summed_loss - result.parallel_summed_loss) <= TOLERANCE:
        raise RunError(
            f"the losses of the {len(result.steps)} steps add up to {result.summed_loss:.6f}, that of the parallel "
            f"pass is {result.parallel_summed_loss:.6f}; they may differ by {TOLERANCE:g} at most. Either the model "
            "sees what the causal mask should hide, or its weights are not finite"
        )
    return result


@contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let a model attend by the eager kernel, the only one that returns its weights."""
    kernel = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(kernel)


def forced_steps(
    model: Seq2SeqTransformerForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    batch: Batch,
    decoder_input_ids: Tensor,
) -> Iterator[Step]:
    """Run teacher forcing as a loop: step t gives the decoder the t right tokens so far, and asks for the next.

    Each step is a separate call that cannot see what comes later, and keeps nothing from the call before.
    """
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    for position, token_id in enumerate(batch["labels"][0].tolist()):
        if token_id == IGNORED:  # the language, which is told
            continue
        prefix = decoder_input_ids[:, : position + 1]  # (1, t)
        logits = model(**inputs, decoder_input_ids=prefix, use_cache=False).logits[0, -1]  # (V)
        log_probabilities = logits.cpu().log_softmax(-1)
        best = log_probabilities.exp().topk(min(CANDIDATES, len(log_probabilities)))
        best_ids = best.indices.tolist()
        right = log_probabilities[token_id]
        yield Step(
            candidates=list(zip(best_ids, readable_tokens(tokenizer, best_ids), best.values.tolist(), strict=True)),
            token=readable_tokens(tokenizer, [token_id])[0],
            token_id=token_id,
            probability=right.exp().item(),
            rank=1 + int((log_probabilities > right).sum()),
            loss=-right.item(),
        )


def generate_greedily(
    model: Seq2SeqTransformerForConditionalGeneration, task: SequenceToSequence, batch: Batch
) -> list[int]:
    """Return the ids that the model says by itself, the most probable at each step, without the start token."""
    generation = copy.deepcopy(model.generation_config)
    generation.update(do_sample=False, num_beams=1, num_return_sequences=1, return_dict_in_generate=False)
    generation.update(max_length=None, max_new_tokens=2 * batch["labels"].shape[1] + 10)
    ids = task.generate(model, batch, generation)
    assert isinstance(ids, Tensor)
    return ids[0, task.prompt_length(model, batch) :].tolist()


@contextmanager
def record_projections(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Record the outputs of all q_proj, k_proj and v_proj, and the inputs of the first layers, by module name.

    Make one call of the model inside: a second one overwrites the records of the first.
    """
    records: dict[str, Tensor] = {}

    def keep_output(name: str, module: nn.Module, arguments: tuple, output: Tensor) -> None:
        records[name] = output.cpu()

    def keep_input(name: str, module: nn.Module, arguments: tuple) -> None:
        records[name] = arguments[0].cpu()

    hooks = []
    for name, module in model.named_modules():
        if name.endswith((".q_proj", ".k_proj", ".v_proj")):
            hooks.append(module.register_forward_hook(partial(keep_output, name)))
        elif name in ("encoder.layers.0", "decoder.layers.0"):
            hooks.append(module.register_forward_pre_hook(partial(keep_input, name)))
    try:
        yield records
    finally:
        for hook in hooks:
            hook.remove()


def embed_sequence(
    embedding: nn.Embedding, input_ids: Tensor, tokenizer: PreTrainedTokenizerBase, inputs: Tensor
) -> EmbeddedSequence:
    """Return the two summands (sections 3.4 and 3.5) of `input_ids` (1, T), and their sum as the first layer got it."""
    ids = input_ids[0].tolist()
    d_model = embedding.embedding_dim
    return EmbeddedSequence(
        tokens=readable_tokens(tokenizer, ids),
        ids=ids,
        vectors=(embedding(input_ids[0]) * math.sqrt(d_model)).cpu(),
        positions=sinusoidal_positions(torch.arange(len(ids)), d_model),
        inputs=inputs[0],
    )


def collect_attentions(
    name: str, weights: tuple[Tensor, ...], records: dict[str, Tensor], heads: int
) -> list[Attention]:
    """Return one attention a layer, from the recorded projections and the weights (1, H, T, K).

    Args:
        name: of the attention module, with `{}` for the number of the layer.
    """

    def split(layer: int, projection: str) -> Tensor:
        states = records[f"{name.format(layer)}.{projection}"][0]  # (T, D)
        return states.unflatten(-1, (heads, -1)).transpose(0, 1)  # (H, T, E)

    return [
        Attention(split(layer, "q_proj"), split(layer, "k_proj"), split(layer, "v_proj"), layer_weights[0].cpu())
        for layer, layer_weights in enumerate(weights)
    ]


def readable_tokens(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """Return tokens as people read them: as in the vocabulary, or decoded where letters stand for bytes there.

    A model may have more ids than its tokenizer has tokens; such an id is shown as "#id".
    """
    tokens = [
        token or f"#{token_id}" for token_id, token in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True)
    ]
    if isinstance(tokenizer.backend_tokenizer.decoder, decoders.ByteLevel):
        texts = [tokenizer.decode([token_id]) for token_id in ids]
        # A part of a character cannot be decoded: the letters that stand for its bytes are all there is to show.
        tokens = [token if "\ufffd" in text or not text else text for token, text in zip(tokens, texts, strict=True)]
    return [token.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥") for token in tokens]
