"""The proof of an export: model and export on the same rows, and whether what differs may differ.

A model that generates is compared by the tokens of greedy and of beam search. A token that is not the model's own is
explained where the model itself finds both as probable (a near-tie), as rounding decides there. Beam search sums such
roundings, so its answers are scored: the interval of the score's difference (paired bootstrap, Koehn 2004,
https://aclanthology.org/W04-3250) must not lie below a bound. Other models are compared by their outputs.

Shapes: B rows, L tokens of an answer, V vocabulary.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import ModelOutput

from pipeline.config import SacrebleuConfig
from pipeline.data.rows import Feature
from pipeline.decoding.search import search_of
from pipeline.exporting.rows import ComparedRows
from pipeline.inference.batches import batches_by_length
from pipeline.inference.metrics import Reference, alike, answers
from pipeline.setup.generation_setup import changed_generation
from pipeline.tasks.base import Batch, Task

BATCH_ROWS = 32
SEARCHES = {"greedy": 1, "beam_4": 4}  # name -> beams
SHOWN_DIFFERENCES = 20  # of a search, the worst first
RESAMPLES = 1000
INTERVAL = (2.5, 97.5)  # percentiles
ORDERS = 4  # of n-grams in BLEU


@dataclass(frozen=True)
class Bounds:
    """How far an export may be from its model.

    Attributes:
        near_tie: nats between two tokens, or classes, that the model finds equally probable; infinite where any token
            may be another, and only scores count.
        output: largest difference of an output, as a share of the largest logit, or in standard deviations.
        score: points of BLEU below which the interval of the difference must not lie.
        own_score: likewise where there are no references, so that the model's own answers are taken for them.
    """

    near_tie: float
    output: float
    score: float
    own_score: float


EXACT = Bounds(near_tie=1e-3, output=1e-4, score=-0.1, own_score=-1.0)  # of float32
REDUCED = Bounds(near_tie=math.inf, output=5e-2, score=-0.3, own_score=-10.0)  # of int8, float16, bfloat16


@dataclass(frozen=True)
class Proof:
    """What was measured, as `equivalence.json` has it, and why the export is refused; None where it holds up."""

    report: dict[str, Any]
    problem: str | None


@torch.no_grad()
def compare(model: PreTrainedModel, engine: Any, task: Task, rows: ComparedRows, bounds: Bounds) -> Proof:
    """Compare a model with what stands in for it; each does the same rows in turns, so that their rates compare.

    Args:
        engine: another model, or one of `inference/engines`.
    """
    report: dict[str, Any] = {
        "rows": {"origin": rows.origin, "compared": len(rows.features), "left_out": rows.num_left_out},
        "bounds": {name: value if math.isfinite(value) else None for name, value in asdict(bounds).items()},
    }
    if model.can_generate() and model.config.is_encoder_decoder:
        searches = {name: _compare_search(model, engine, task, rows, beams) for name, beams in SEARCHES.items()}
        problems = [
            problem for name, search in searches.items() if (problem := _judge_search(name, search, rows, bounds))
        ]
        report["searches"] = searches
    else:
        outputs = _compare_outputs(model, engine, task, rows.features)
        report["outputs"] = outputs
        problems = [problem] if (problem := _judge_outputs(outputs, bounds)) else []
    return Proof(report, "; ".join(problems) or None)


# ---- answers


@dataclass(frozen=True)
class Difference:
    """A row with two answers.

    Attributes:
        row: its number in the split.
        model, export: the answers as texts.
        position: the first token in which they differ, counted from 0.
        gap: nats by which the model prefers its own token there; None where one of the answers has ended.
        log_probability: nats that the model gives to its own answer and to that of the export.
        log_probability_per_token: likewise, divided by their tokens.
    """

    row: int
    model: str
    export: str
    position: int
    gap: float | None
    log_probability: dict[str, float]
    log_probability_per_token: dict[str, float]


def _compare_search(model: PreTrainedModel, engine: Any, task: Task, rows: ComparedRows, beams: int) -> dict[str, Any]:
    assert task.tokenizer is not None
    changes = {"num_beams": beams, "do_sample": False, "num_return_sequences": 1}
    sides = {"model": model, "export": engine}
    generations = {
        side: changed_generation(stands_in.generation_config or model.generation_config, changes, f"num_beams={beams}")
        for side, stands_in in sides.items()
    }
    start, end = generations["model"].decoder_start_token_id, generations["model"]
    texts: dict[str, dict[int, str]] = {"model": {}, "export": {}}
    seconds = dict.fromkeys(sides, 0.0)
    differences = []
    for turn, (samples, batch) in enumerate(batches_by_length(model, task, rows.features, BATCH_ROWS)):
        found: dict[str, list[list[int]]] = {}
        for side in sorted(sides, reverse=bool(turn % 2)):  # neither is always the first
            begin = time.perf_counter()
            ids = _generate(sides[side], batch, generations[side])
            seconds[side] += time.perf_counter() - begin
            found[side] = [_answer(row, end) for row in ids]
            decoded = task.tokenizer.batch_decode(found[side], skip_special_tokens=True)
            texts[side] |= zip([sample["sample_id"] for sample in samples], decoded, strict=True)
        for number, (ours, theirs) in enumerate(zip(found["model"], found["export"], strict=True)):
            if ours != theirs:
                row = samples[number]["sample_id"]
                source = {name: batch[name][number : number + 1] for name in ("input_ids", "attention_mask")}
                differences.append(
                    _explain(model, source, start, ours, theirs, row, *(texts[side][row] for side in sides))
                )
    differences.sort(key=lambda difference: -_size(difference))
    ordered = {side: [texts[side][sample["sample_id"]] for sample in rows.features] for side in sides}
    references = [sample["target"] for sample in rows.features] if rows.has_references else ordered["model"]
    rates = {side: len(rows.features) / seconds[side] for side in sides}
    return {
        "equal": len(rows.features) - len(differences),
        "different": len(differences),
        "near_ties": sum(_size(difference) < EXACT.near_tie for difference in differences),
        "references": "targets" if rows.has_references else "the model's own answers",
        "bleu": compare_bleu(ordered["model"], ordered["export"], references, rows.bleu),
        "sentences_per_second": {**rates, "ratio": rates["export"] / rates["model"]},
        "differences": [asdict(difference) for difference in differences[:SHOWN_DIFFERENCES]],
    }


def _generate(stands_in: Any, batch: Batch, generation: GenerationConfig) -> list[list[int]]:
    ids = stands_in.generate(
        batch["input_ids"],
        attention_mask=batch["attention_mask"],
        generation_config=generation,
        custom_generate=search_of(stands_in, generation),
    )
    return ids.tolist()


def _answer(ids: list[int], generation: GenerationConfig) -> list[int]:
    """Return what stands behind the start token, up to the end token or the padding."""
    eos = generation.eos_token_id
    ends = eos if isinstance(eos, list) else [eos]
    answer = ids[1:]
    for place, token in enumerate(answer):
        if token in ends:
            return answer[: place + 1]
    while answer and answer[-1] == generation.pad_token_id:
        answer.pop()
    return answer


def _explain(
    model: PreTrainedModel,
    source: Batch,
    start: int,
    ours: list[int],
    theirs: list[int],
    row: int,
    our_text: str,
    their_text: str,
) -> Difference:
    """Ask the model what it thinks of both answers."""
    our_logs, their_logs = (_log_probabilities(model, source, start, ids) for ids in (ours, theirs))  # (L, V)
    position = next(
        (place for place, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]),
        min(len(ours), len(theirs)),
    )
    gap = None
    if position < min(len(ours), len(theirs)):
        gap = float(our_logs[position, ours[position]] - our_logs[position, theirs[position]])
    sums = {
        "model": _sum_of(our_logs, ours),
        "export": _sum_of(their_logs, theirs),
    }
    lengths = {"model": len(ours), "export": len(theirs)}
    means = {side: total / max(lengths[side], 1) for side, total in sums.items()}
    return Difference(row, our_text, their_text, position, gap, sums, means)


def _log_probabilities(model: PreTrainedModel, source: Batch, start: int, ids: list[int]) -> Tensor:
    """Return log-probabilities (L, V) of the tokens at each place of one answer, in float64."""
    decoder_input_ids = torch.tensor([[start, *ids[:-1]]], device=model.device)
    logits = model(**source, decoder_input_ids=decoder_input_ids).logits[0]
    return logits.double().log_softmax(-1)


def _sum_of(logs: Tensor, ids: list[int]) -> float:
    return sum(float(logs[place, token]) for place, token in enumerate(ids))


def _size(difference: Difference) -> float:
    return math.inf if difference.gap is None else abs(difference.gap)


def _judge_search(name: str, search: dict[str, Any], rows: ComparedRows, bounds: Bounds) -> str | None:
    """Say why the answers of a search do not hold up; None where they do."""
    unexplained = search["different"] - search["near_ties"]
    if name == "greedy" and unexplained and math.isfinite(bounds.near_tie):
        worst = search["differences"][0]
        gap = "one ends" if worst["gap"] is None else f"the model prefers its own token by {worst['gap']:.3g} nats"
        return (
            f"greedy search gives other tokens in {search['different']} of {len(rows.features)} rows, "
            f"{search['near_ties']} of them near-ties; in row {worst['row']}, {gap}: "
            f"{worst['model']!r} became {worst['export']!r}"
        )
    bound = bounds.score if rows.has_references else bounds.own_score
    bleu = search["bleu"]
    low, high = bleu["interval"]
    if not high >= bound:
        return (
            f"BLEU of {name.replace('_', ' ')} falls from {bleu['model']:.2f} to {bleu['export']:.2f}, by "
            f"{-high:.2f} to {-low:.2f} with 95 % confidence, more than {-bound:g}"
        )
    return None


# ---- scores


def compare_bleu(
    ours: Sequence[str], theirs: Sequence[str], references: Sequence[Reference], settings: SacrebleuConfig
) -> dict[str, Any]:
    """Score two systems on the same rows, with a 95 % interval of the difference (theirs less ours) by resampling rows.

    sacreBLEU's own paired bootstrap gives intervals of both scores, but none of their difference:
    https://github.com/mjpost/sacrebleu/blob/v2.6.0/sacrebleu/significance.py
    """
    import sacrebleu

    metric = sacrebleu.BLEU(tokenize=settings.tokenize, lowercase=settings.lowercase, effective_order=True)
    texts = [answers(reference) for reference in alike(references)]
    counts = [
        np.array([_counts(metric.sentence_score(text, targets)) for text, targets in zip(system, texts, strict=True)])
        for system in (ours, theirs)
    ]  # (N, 10) each
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(RESAMPLES):
        sample = generator.integers(len(texts), size=len(texts))
        drawn.append(_bleu(counts[1][sample]) - _bleu(counts[0][sample]))
    our_score, their_score = map(_bleu, counts)
    return {
        "model": our_score,
        "export": their_score,
        "difference": their_score - our_score,
        "interval": [float(bound) for bound in np.percentile(drawn, INTERVAL)],
        "resamples": RESAMPLES,
        "tokenize": settings.tokenize,
        "lowercase": settings.lowercase,
    }


def _counts(score: Any) -> list[int]:
    """Return n-grams found, n-grams in all, length and length of the reference, which sum to those of a corpus."""
    return [*score.counts, *score.totals, score.sys_len, score.ref_len]


def _bleu(counts: np.ndarray) -> float:
    """Return corpus BLEU of rows of `_counts`, smoothed as sacreBLEU does by default."""
    import sacrebleu

    sums = counts.sum(0).tolist()
    score = sacrebleu.BLEU.compute_bleu(
        sums[:ORDERS], sums[ORDERS : 2 * ORDERS], sums[-2], sums[-1], smooth_method="exp", max_ngram_order=ORDERS
    )
    return score.score


# ---- outputs


class _Pair:
    """Stands in for a model wherever a task calls one: model and export get the same batch, each its own state.

    Attributes:
        differences: largest difference of each row (B), one tensor a call.
        compared, different, near_ties: choices of the most probable token or class.
        seconds: that each side has taken.
    """

    def __init__(self, model: PreTrainedModel, engine: Any, task: Task):
        self.sides = {"model": model, "export": engine}
        self.device = model.device
        self.stds = getattr(task, "stds", None)
        self.differences: list[Tensor] = []
        self.compared = self.different = self.near_ties = 0
        self.seconds = dict.fromkeys(self.sides, 0.0)

    def __call__(self, past_key_values: dict[str, Any] | None = None, **batch: Any) -> ModelOutput:
        outputs = {}
        for side in sorted(self.sides, reverse=bool(len(self.differences) % 2)):
            state = {} if past_key_values is None else {"past_key_values": past_key_values[side]}
            begin = time.perf_counter()
            outputs[side] = self.sides[side](**batch, **state)
            self.seconds[side] += time.perf_counter() - begin
        ours, theirs = outputs["model"], outputs["export"]
        if "logits" in ours:
            self._compare_logits(ours.logits.double(), theirs.logits.double())
        else:  # forecasts, in the units of the data
            scale = torch.tensor(self.stds, dtype=torch.float64, device=self.device)
            self._keep((theirs.prediction_outputs.double() - ours.prediction_outputs.double()) / scale)
        if ours.get("past_key_values") is not None:
            ours.past_key_values = {side: outputs[side].past_key_values for side in outputs}
        return ours

    def _compare_logits(self, ours: Tensor, theirs: Tensor) -> None:
        self._keep((theirs - ours) / ours.abs().max().clamp(min=1))
        logs = ours.log_softmax(-1)
        own, other = ours.argmax(-1, keepdim=True), theirs.argmax(-1, keepdim=True)
        gaps = (logs.gather(-1, own) - logs.gather(-1, other))[own != other]
        self.compared += own.numel()
        self.different += gaps.numel()
        self.near_ties += int((gaps < EXACT.near_tie).sum())

    def _keep(self, difference: Tensor) -> None:
        self.differences.append(difference.abs().flatten(1).amax(1))  # (B)


def _compare_outputs(model: PreTrainedModel, engine: Any, task: Task, features: Sequence[Feature]) -> dict[str, Any]:
    pair = _Pair(model, engine, task)
    by_row: dict[int, Tensor] = {}
    for samples, batch in batches_by_length(model, task, features, BATCH_ROWS):
        first = len(pair.differences)
        task.score(pair, batch)
        worst = torch.stack(pair.differences[first:]).amax(0)  # (B)
        by_row |= zip([sample["sample_id"] for sample in samples], worst, strict=True)
    rows, differences = [*by_row], torch.stack([*by_row.values()])
    largest = int(differences.nan_to_num(math.inf).argmax())
    rates = {side: len(features) / seconds for side, seconds in pair.seconds.items()}
    return {
        "unit": "share of the largest logit" if pair.compared else "standard deviations",
        "largest_difference": float(differences[largest]),
        "row": rows[largest],
        "choices": {"compared": pair.compared, "different": pair.different, "near_ties": pair.near_ties},
        "rows_per_second": {**rates, "ratio": rates["export"] / rates["model"]},
    }


def _judge_outputs(outputs: dict[str, Any], bounds: Bounds) -> str | None:
    """Say why outputs do not hold up; None where they do."""
    choices = outputs["choices"]
    if not outputs["largest_difference"] <= bounds.output:
        return (
            f"outputs differ by {outputs['largest_difference']:.3g} (in {outputs['unit']}) in row {outputs['row']}, "
            f"more than {bounds.output:g}"
        )
    if choices["different"] > choices["near_ties"] and math.isfinite(bounds.near_tie):
        return f"{choices['different'] - choices['near_ties']} of {choices['compared']} choices differ, not near-ties"
    return None
