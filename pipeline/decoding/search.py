"""Greedy and beam search that leave a row when it is finished, in place of going on until the last one is.

Each is a `custom_generate` of `GenerationMixin.generate`, which prepares inputs, cache, processors and criteria as
ever, and gives the same tokens. https://huggingface.co/docs/transformers/generation_strategies#custom-generation-methods

Shapes: B rows that go on, K beams, L tokens so far, V vocabulary, C copies of each source.
"""

import copy
import inspect
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation import GenerateBeamEncoderDecoderOutput, GenerationMode
from transformers.modeling_outputs import BaseModelOutput

from pipeline.decoding.steps import Steps, steps_of

NEVER = -1.0e9  # as a score; finite, as in `generate`
# Models of others whose decoder needs no more for a step than the new token, the encoded source with its mask, and its
# keys and values. Their beams have a copy of the source each, those of our own model share one.
PAIRS = ("bart", "m2m_100", "marian", "mbart", "mt5", "pegasus", "t5")
CHUNK = 100  # scores of which only the best is looked at first
SEQUENCES = 512  # of a part, at most
ENCODED = 1024  # padded tokens that are encoded at a time; with more, what the layers make leaves the CPU's cache
Part = TypeVar("Part")
Found = TypeVar("Found")


def search_of(model: PreTrainedModel, generation: GenerationConfig | None) -> Callable | None:
    """Return a search that gives what `model.generate` does under `generation`; None where only that one can.

    Of beams it gives the scores as well, where `return_dict_in_generate` asks for more than tokens.
    """
    generation = complete(generation, model)
    mode = generation.get_generation_mode()
    is_plain = (
        (getattr(model, "shares_source", False) or _is_pair(model))
        and generation.use_cache is not False
        and generation.cache_implementation is None
        and (mode is GenerationMode.BEAM_SEARCH or not generation.return_dict_in_generate)
        and not any((generation.output_attentions, generation.output_hidden_states, generation.output_logits))
        # These look at the source by the number of the row.
        and (generation.encoder_repetition_penalty or 1.0) == 1.0
        and not generation.encoder_no_repeat_ngram_size
    )
    searches = {GenerationMode.GREEDY_SEARCH: greedy_search, GenerationMode.BEAM_SEARCH: beam_search}
    return searches.get(mode) if is_plain else None


def complete(generation: GenerationConfig | None, model: PreTrainedModel) -> GenerationConfig:
    """Return a generation config in which what was unset is as the model has it, as `generate` fills it."""
    generation = copy.deepcopy(generation or model.generation_config)
    generation.update(**model.generation_config.to_dict(), defaults_only=True)
    return generation


def encode(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> dict[str, BaseModelOutput]:
    """Encode sources (B, S) under their mask for a search: the argument of `generate` that has them, (B, S, D).

    Rows that follow one another are encoded together, without the padding that only others need. So a batch may be as
    large as the decoder likes. Nothing where `generate` does as well, or would refuse the argument: it looks for its
    name in the signature of `forward`, which tools put another function in place of.
    """
    if not _is_shared_out(input_ids) or "encoder_outputs" not in inspect.signature(model.forward).parameters:
        return {}
    encoder = model.get_encoder()

    def encode_part(part: tuple[Tensor, Tensor]) -> Tensor:
        ids, mask = (tensor[:, : _width(part[1])] for tensor in part)
        states = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return nn.functional.pad(states, (0, 0, 0, input_ids.shape[1] - states.shape[1]))

    cuts = _cuts(attention_mask, input_ids.numel(), ENCODED)
    parts = zip(input_ids.tensor_split(cuts), attention_mask.tensor_split(cuts), strict=True)
    return {"encoder_outputs": BaseModelOutput(torch.cat(_on_threads(encode_part, [*parts])))}


def greedy_search(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **model_kwargs,
) -> Tensor:
    """Take the most probable token at each step, until a criterion is met: decoder inputs (B, 1) to (B, L)."""
    whole = Rows(model, input_ids, logits_processor, stopping_criteria, generation_config, *_source(model_kwargs))
    return _stack(_in_parts(_search_greedily, whole, 1), generation_config)


def _search_greedily(part: "Rows") -> list[Tensor]:
    """Return the answer to each row, (L)."""
    input_ids = new_ids = part.input_ids
    answers = [input_ids[0]] * len(input_ids)
    rows = torch.arange(len(input_ids), device=input_ids.device)  # those that go on
    steps = part.begin(beams=1)
    while len(rows):
        logits = part.logits_processor(input_ids, steps.next_logits(new_ids))  # (B, V)
        new_ids = _argmax(logits)[:, None]
        input_ids = torch.cat([input_ids, new_ids], 1)
        is_done = part.stopping_criteria(input_ids, None)
        if is_done.any():
            for row, ids in zip(rows[is_done].tolist(), input_ids[is_done], strict=True):
                answers[row] = ids
            going_on = _close_ranks(~is_done)
            rows, input_ids, new_ids = (tensor[going_on] for tensor in (rows, input_ids, new_ids))
            steps.keep(going_on)
    return answers


def beam_search(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **model_kwargs,
) -> Tensor | GenerateBeamEncoderDecoderOutput:
    """Find the N = `num_return_sequences` best finished sequences of K beams: decoder inputs (B * K, 1) to (B * N, L).

    Scores are sums of log-probabilities, of finished sequences divided by length ** length_penalty.
    """
    whole = Rows(model, input_ids, logits_processor, stopping_criteria, generation_config, *_source(model_kwargs))
    found = _in_parts(_search_beams, whole, generation_config.num_beams)
    sequences = _stack([ids for row, _ in found for ids in row], generation_config)
    if not generation_config.return_dict_in_generate:
        return sequences
    return GenerateBeamEncoderDecoderOutput(
        sequences=sequences, sequences_scores=torch.cat([scores for _, scores in found])
    )


def _search_beams(part: "Rows") -> list[tuple[Tensor, Tensor]]:
    """Return the N best of each row, (N, L), and their scores, (N)."""
    generation = part.generation
    beams, wanted = generation.num_beams, generation.num_return_sequences
    beginning = part.input_ids.shape[1]
    running = part.input_ids.unflatten(0, (-1, beams))  # (B, K, L)
    rows = torch.arange(len(running), device=running.device)
    scores = torch.full(running.shape[:2], NEVER, device=running.device)
    finished = Finished(running, torch.full_like(scores, NEVER), torch.zeros_like(scores, dtype=torch.bool))
    scores[:, 0] = 0  # all beams are alike at first: the others must not be chosen
    may_improve = torch.ones_like(rows, dtype=torch.bool)
    answers = [(running[0], scores[0])] * len(rows)
    steps = part.begin(beams)
    new_ids = part.input_ids
    while len(rows):
        logs = steps.next_logits(new_ids).log_softmax(-1)  # (B * K, V)
        logs = part.logits_processor(running.flatten(0, 1), logs)
        grown, totals, origin = _grow(running, scores, logs, generation)
        is_done = part.stopping_criteria(grown.flatten(0, 1), None).unflatten(0, grown.shape[:2])  # (B, candidates)
        finished = finished.update(grown, totals, is_done, may_improve, beginning, generation)
        scores, best = (totals + is_done * NEVER).topk(beams)
        running, origin = _take(grown, best), origin.gather(1, best)
        may_improve = may_improve & finished.may_improve(scores, beginning, generation)
        going_on = may_improve & ~is_done.all(1)
        if generation.early_stopping is True:
            going_on &= ~finished.is_there.all(1)
        steps.reorder(origin)
        if not going_on.all():
            done = finished[~going_on]
            for row, *answer in zip(rows[~going_on].tolist(), done.ids, done.scores, strict=True):
                answers[row] = tuple(best_first[:wanted] for best_first in answer)
            remaining = _close_ranks(going_on)
            rows, running, scores, may_improve = (tensor[remaining] for tensor in (rows, running, scores, may_improve))
            finished = finished[remaining]
            steps.keep(remaining)
        new_ids = running[..., -1:].flatten(0, 1)
    return answers


class Finished:
    """The K best finished sequences of each row: ids (B, K, L), scores (B, K), and whether there are so many (B, K)."""

    def __init__(self, ids: Tensor, scores: Tensor, is_there: Tensor):
        self.ids, self.scores, self.is_there = ids, scores, is_there

    def __getitem__(self, rows: Tensor) -> "Finished":
        return Finished(self.ids[rows], self.scores[rows], self.is_there[rows])

    def update(
        self,
        grown: Tensor,
        totals: Tensor,
        is_done: Tensor,
        may_improve: Tensor,
        beginning: int,
        generation: GenerationConfig,
    ) -> "Finished":
        """Return the K best of these sequences and the done ones among the K best candidates.

        With K = 2, one finished sequence so far, and length_penalty 1 (`<s>` is left out here and never counted):

            so far        `a </s>` -1.0
            candidates    `a b </s>` -1.5    `a b c` -1.8    `a c </s>` -2.1    `a c d` -2.4
            returned      `a b </s>` -0.5    `a </s>` -1.0

        -0.5 is -1.5 / 3 tokens. `a b c` is not done: it goes on as a beam. `a c </s>` is done, but only the third best
        candidate, and is dropped, as in `generate`.

        Args:
            grown: candidates (B, candidates, L + 1), the best first.
            totals: their sums of log-probabilities, (B, candidates).
            is_done: whether they end here, (B, candidates).
            may_improve: rows to which sequences may still be added, (B).
            beginning: length of the prompt, which no score counts.
        """
        beams = self.ids.shape[1]
        new = is_done & (torch.arange(totals.shape[1], device=totals.device) < beams)
        refused = ~new | ~may_improve[:, None]
        if generation.early_stopping is True:
            refused |= self.is_there.all(1, keepdim=True)
        scores = totals / (grown.shape[-1] - beginning) ** generation.length_penalty + refused * NEVER
        ids = torch.cat([nn.functional.pad(self.ids, (0, 1), value=_padding(generation)), grown], 1)
        scores, best = torch.cat([self.scores, scores], 1).topk(beams)
        return Finished(_take(ids, best), scores, torch.cat([self.is_there, new], 1).gather(1, best))

    def may_improve(self, scores: Tensor, beginning: int, generation: GenerationConfig) -> Tensor:
        """Tell whether the best running beam, at its present or the longest length, could beat the worst here: (B)."""
        length = self.ids.shape[-1] - beginning
        if generation.early_stopping == "never" and generation.length_penalty > 0:
            length = generation.max_length - beginning
        best = scores[:, :1] / length**generation.length_penalty
        worst = torch.where(self.is_there, self.scores.amin(1, keepdim=True), NEVER)
        return (best > worst).any(1)


def _is_pair(model: PreTrainedModel) -> bool:
    # Not of what stands in for a model, such as an engine, or puts something in front of its inputs, such as PEFT.
    return isinstance(model, PreTrainedModel) and model.config.model_type in PAIRS


@dataclass
class Rows:
    """What a search begins with: decoder inputs (B * K, P), the source (B * C, S, D), and its mask (B * C, S)."""

    model: PreTrainedModel
    input_ids: Tensor
    logits_processor: LogitsProcessorList
    stopping_criteria: StoppingCriteriaList
    generation: GenerationConfig
    source: Tensor
    attention_mask: Tensor

    def begin(self, beams: int) -> Steps:
        return steps_of(self.model, self.source, self.attention_mask, beams)

    def split(self, cuts: list[int], beams: int) -> list["Rows"]:
        """Cut before these rows into parts, whose rows are of like length where rows are sorted."""
        rows = len(self.input_ids) // beams

        def cut(tensor: Tensor) -> list[Tensor]:
            return [part.flatten(0, 1) for part in tensor.unflatten(0, (rows, -1)).tensor_split(cuts)]

        inputs = zip(cut(self.input_ids), cut(self.source), cut(self.attention_mask), strict=True)
        return [
            replace(
                self,
                input_ids=input_ids,
                source=source[:, : _width(mask)],
                attention_mask=mask[:, : _width(mask)],
                # Some prepare themselves when they are first called.
                logits_processor=LogitsProcessorList(map(copy.copy, self.logits_processor)),
            )
            for input_ids, source, mask in inputs
        ]


def _width(attention_mask: Tensor) -> int:
    """Return how many places of (B, S) there are up to the last one that a row reads."""
    return attention_mask.shape[1] - int(attention_mask.bool().any(0).flip(0).int().argmax())


def _source(model_kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    # Not by parameters of the searches, as `generate` then hands on what it was given beside what it made of that.
    return model_kwargs["encoder_outputs"].last_hidden_state, model_kwargs["attention_mask"]


def _in_parts(search: Callable[[Rows], list], whole: Rows, beams: int) -> list:
    """Search all rows, on a CPU part by part; return what it found for each."""
    if not _is_shared_out(whole.source):
        return search(whole)
    masks = whole.attention_mask.unflatten(0, (len(whole.input_ids) // beams, -1))[:, 0]
    cuts = _cuts(masks, len(whole.input_ids), SEQUENCES)
    return [*chain.from_iterable(_on_threads(search, whole.split(cuts, beams)))]


def _cuts(attention_mask: Tensor, size: int, most: int) -> list[int]:
    """Return where to cut rows into parts with as many tokens each, so that threads are done at the same time.

    Args:
        attention_mask: of the rows, (B, S).
        size: of all rows, of which a part is to have `most`, or more where its rows are short.
    """
    threads = torch.get_num_threads()
    num_parts = threads * math.ceil(size / (threads * most))
    tokens = attention_mask.sum(1).cumsum(0)
    places = torch.searchsorted(tokens, torch.arange(1, num_parts) * tokens[-1] // num_parts)
    return [place for place in places.unique().tolist() if place]


def _is_shared_out(tensor: Tensor) -> bool:
    # Of several processes each has its share of the CPU, and of a sharded model they take each step together.
    return tensor.device.type == "cpu" and not torch.distributed.is_initialized()


def _on_threads(work: Callable[[Part], Found], parts: list[Part]) -> list[Found]:
    """Work on as many parts at once as there are threads.

    The products of one step are too small to be shared by threads well, and what else a step does is not shared at all.
    Parts that are not too large leave what they compute in the CPU's cache.
    """
    threads = torch.get_num_threads()
    autocast = torch.autocast("cpu", torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu"))

    @torch.no_grad()  # which each thread has by itself, as it has autocast
    def work_alone(part: Part) -> Found:
        with autocast:
            return work(part)

    share = max(1, threads // len(parts))
    # Each thread has a number for OpenMP; that of MKL is shared by all.
    pool = ThreadPoolExecutor(min(threads, len(parts)), initializer=torch.set_num_threads, initargs=(share,))
    try:
        with pool:
            return [*pool.map(work_alone, parts)]
    finally:
        torch.set_num_threads(threads)


def _close_ranks(going_on: Tensor) -> Tensor:
    """Return the places of the rows that go on, where the last ones take the places of those that do not.

    So little is moved: of going_on [1, 0, 1, 1] it is [0, 3, 2].
    """
    places = torch.arange(int(going_on.sum()), device=going_on.device)
    left, right = going_on[: len(places)], going_on[len(places) :]
    places[~left] = right.nonzero().squeeze(1) + len(places)
    return places


def _argmax(scores: Tensor) -> Tensor:
    """Return the place of the best score of each row, the first of equal ones, as `argmax` does: (B, V) to (B)."""
    chunks = _chunks(scores)
    if scores.device.type != "cpu" or not chunks.shape[1]:
        return scores.argmax(-1)
    bests = chunks.amax(-1)  # (B, chunks)
    best_chunk = bests.argmax(-1)
    rows = torch.arange(len(scores))
    places = best_chunk * CHUNK + chunks[rows, best_chunk].argmax(-1)
    rest = scores[:, chunks.shape[1] * CHUNK :]  # behind the last chunk
    if rest.shape[1]:
        is_in_rest = rest.amax(-1) > bests[rows, best_chunk]
        places = torch.where(is_in_rest, chunks.shape[1] * CHUNK + rest.argmax(-1), places)
    return places


def _chunks(scores: Tensor) -> Tensor:
    """Cut each row into chunks: (B, V) to (B, chunks, CHUNK), without what is behind the last one.

    On a CPU `argmax` and `topk` take several times as long as to look first at which chunks have the best scores.
    """
    return scores[:, : scores.shape[1] // CHUNK * CHUNK].unflatten(1, (-1, CHUNK))


def _topk(logs: Tensor, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the best sums of what each beam has so far and what a token adds, and their places in a row's beams.

    Args:
        logs: (B * K, V). scores: (B, K).

    Returns:
        (B, count) each; places count up to K * V.
    """
    beams, vocabulary = scores.shape[1], logs.shape[1]
    chunks = _chunks(logs)
    if logs.device.type != "cpu" or chunks.shape[1] <= count:
        return (logs.unflatten(0, (-1, beams)) + scores[..., None]).flatten(1).topk(count)
    # The sums are made of the chunks' best and of what lies in the best chunks, not of all that there is.
    bests = chunks.amax(-1).unflatten(0, (-1, beams)) + scores[..., None]  # (B, K, chunks)
    best_chunks = bests.flatten(1).topk(count).indices  # (B, count)
    beam, chunk = best_chunks // bests.shape[2], best_chunks % bests.shape[2]
    first = beam * vocabulary + chunk * CHUNK
    places = (first[..., None] + torch.arange(CHUNK)).flatten(1)
    rest = torch.arange(chunks.shape[1] * CHUNK, vocabulary)  # behind the last chunk
    rests = (torch.arange(beams)[:, None] * vocabulary + rest).flatten()
    places = torch.cat([places, rests.expand(len(scores), -1)], 1)
    sums = logs.unflatten(0, (-1, beams)).flatten(1).gather(1, places) + scores.gather(1, places // vocabulary)
    best, index = sums.topk(count)
    return best, places.gather(1, index)


def _grow(running: Tensor, scores: Tensor, logs: Tensor, generation: GenerationConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best continuations (B, candidates, L + 1), their scores, and the beams they come from.

    There are so many that K of them go on, even where the others all end.
    """
    eos = generation.eos_token_id
    ends = 0 if eos is None else len(eos) if isinstance(eos, list) else 1
    vocabulary, beams = logs.shape[-1], running.shape[1]
    totals, index = _topk(logs, scores, max(2, 1 + ends) * beams)
    origin, token = index // vocabulary, index % vocabulary
    return torch.cat([_take(running, origin), token[..., None]], -1), totals, origin


def _take(sequences: Tensor, indices: Tensor) -> Tensor:
    return sequences.gather(1, indices[..., None].expand(-1, -1, sequences.shape[-1]))


def _padding(generation: GenerationConfig) -> int:
    return 0 if generation.pad_token_id is None else generation.pad_token_id


def _stack(answers: list[Tensor], generation: GenerationConfig) -> Tensor:
    return nn.utils.rnn.pad_sequence(answers, batch_first=True, padding_value=_padding(generation))
