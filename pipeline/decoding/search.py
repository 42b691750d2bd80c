"""Greedy and beam search that leave a row when it is finished, in place of going on until the last one is.

Each is a `custom_generate` of `GenerationMixin.generate`, which prepares inputs, cache, processors and criteria as
ever, and gives the same tokens. https://huggingface.co/docs/transformers/generation_strategies#custom-generation-methods

Shapes: B rows that go on, K beams, L tokens so far, V vocabulary.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.cache_utils import EncoderDecoderCache
from transformers.generation import GenerateBeamEncoderDecoderOutput, GenerationMode
from transformers.modeling_outputs import BaseModelOutput

NEVER = -1.0e9  # as a score; finite, as in `generate`


def search_of(model: PreTrainedModel, generation: GenerationConfig | None) -> Callable | None:
    """Return a search that gives what `model.generate` does under `generation`; None where only that one can.

    Of beams it gives the scores as well, where `return_dict_in_generate` asks for more than tokens.
    """
    generation = complete(generation, model)
    mode = generation.get_generation_mode()
    is_plain = (
        getattr(model, "shares_source", False)
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


def greedy_search(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **model_kwargs,
) -> Tensor:
    """Take the most probable token at each step, until a criterion is met: decoder inputs (B, 1) to (B, L)."""
    answers = [input_ids[0]] * len(input_ids)
    rows = torch.arange(len(input_ids), device=input_ids.device)  # those that go on
    source, attention_mask, past_key_values = _inputs(model_kwargs)
    new_ids = input_ids
    while len(rows):
        logits = _next_logits(model, new_ids, source, attention_mask, past_key_values)
        new_ids = logits_processor(input_ids, logits).argmax(-1, keepdim=True)
        input_ids = torch.cat([input_ids, new_ids], 1)
        is_done = stopping_criteria(input_ids, None)
        if is_done.any():
            for row, ids in zip(rows[is_done].tolist(), input_ids[is_done], strict=True):
                answers[row] = ids
            going_on = (~is_done).nonzero().squeeze(1)
            rows, source, attention_mask, input_ids, new_ids = (
                tensor[going_on] for tensor in (rows, source, attention_mask, input_ids, new_ids)
            )
            past_key_values.batch_select_indices(going_on)
    return _stack(answers, generation_config)


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
    beams, wanted = generation_config.num_beams, generation_config.num_return_sequences
    beginning = input_ids.shape[1]
    running = input_ids.unflatten(0, (-1, beams))  # (B, K, L)
    answers = [input_ids[0]] * (len(running) * wanted)
    best_scores = torch.full((len(running), wanted), NEVER, device=input_ids.device)
    rows = torch.arange(len(running), device=input_ids.device)
    scores = torch.full(running.shape[:2], NEVER, device=input_ids.device)
    finished = Finished(running, torch.full_like(scores, NEVER), torch.zeros_like(scores, dtype=torch.bool))
    scores[:, 0] = 0  # all beams are alike at first: the others must not be chosen
    may_improve = torch.ones_like(rows, dtype=torch.bool)
    source, attention_mask, past_key_values = _inputs(model_kwargs)
    new_ids = input_ids
    while len(rows):
        logits = _next_logits(model, new_ids, source, attention_mask, past_key_values)
        logs = logits_processor(running.flatten(0, 1), logits.log_softmax(-1))  # (B * K, V)
        grown, totals, origin = _grow(running, scores, logs, generation_config)
        is_done = stopping_criteria(grown.flatten(0, 1), None).unflatten(0, grown.shape[:2])  # (B, candidates)
        finished = finished.update(grown, totals, is_done, may_improve, beginning, generation_config)
        scores, best = (totals + is_done * NEVER).topk(beams)
        running, origin = _take(grown, best), origin.gather(1, best)
        may_improve = may_improve & finished.may_improve(scores, beginning, generation_config)
        going_on = may_improve & ~is_done.all(1)
        if generation_config.early_stopping is True:
            going_on &= ~finished.is_there.all(1)
        remaining_rows = going_on.nonzero().squeeze(1)
        if len(remaining_rows) < len(rows):
            done = finished[~going_on]
            best_scores[rows[~going_on]] = done.scores[:, :wanted]
            for row, ids in zip(rows[~going_on].tolist(), done.ids[:, :wanted], strict=True):
                answers[row * wanted : (row + 1) * wanted] = ids
            past_key_values.cross_attention_cache.batch_select_indices(remaining_rows)
            rows, source, attention_mask, running, scores, may_improve = (
                tensor[remaining_rows] for tensor in (rows, source, attention_mask, running, scores, may_improve)
            )
            finished = finished[remaining_rows]
        past_key_values.self_attention_cache.reorder_cache(
            (remaining_rows[:, None] * beams + origin[remaining_rows]).flatten()
        )
        new_ids = running[..., -1:].flatten(0, 1)
    sequences = _stack(answers, generation_config)
    if not generation_config.return_dict_in_generate:
        return sequences
    return GenerateBeamEncoderDecoderOutput(sequences=sequences, sequences_scores=best_scores.flatten())


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


def _inputs(model_kwargs: dict[str, Any]) -> tuple[Tensor, Tensor, EncoderDecoderCache]:
    # Not by parameters of the searches, as `generate` then hands on what it was given beside what it made of that.
    source = model_kwargs["encoder_outputs"].last_hidden_state
    return source, model_kwargs["attention_mask"], model_kwargs["past_key_values"]


def _next_logits(
    model: PreTrainedModel, new_ids: Tensor, source: Tensor, attention_mask: Tensor, cache: EncoderDecoderCache
) -> Tensor:
    outputs = model(
        decoder_input_ids=new_ids,
        encoder_outputs=BaseModelOutput(source),
        attention_mask=attention_mask,
        past_key_values=cache,
        use_cache=True,
    )
    return outputs.logits[:, -1].float()


def _grow(running: Tensor, scores: Tensor, logs: Tensor, generation: GenerationConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best continuations (B, candidates, L + 1), their scores, and the beams they come from.

    There are so many that K of them go on, even where the others all end.
    """
    eos = generation.eos_token_id
    ends = 0 if eos is None else len(eos) if isinstance(eos, list) else 1
    vocabulary, beams = logs.shape[-1], running.shape[1]
    totals = (logs.unflatten(0, (-1, beams)) + scores[..., None]).flatten(1)  # (B, K * V)
    totals, index = totals.topk(max(2, 1 + ends) * beams)
    origin, token = index // vocabulary, index % vocabulary
    return torch.cat([_take(running, origin), token[..., None]], -1), totals, origin


def _take(sequences: Tensor, indices: Tensor) -> Tensor:
    return sequences.gather(1, indices[..., None].expand(-1, -1, sequences.shape[-1]))


def _padding(generation: GenerationConfig) -> int:
    return 0 if generation.pad_token_id is None else generation.pad_token_id


def _stack(answers: list[Tensor], generation: GenerationConfig) -> Tensor:
    return nn.utils.rnn.pad_sequence(answers, batch_first=True, padding_value=_padding(generation))
