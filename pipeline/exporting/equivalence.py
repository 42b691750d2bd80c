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
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from pipeline.config import SacrebleuConfig
from pipeline.data.rows import Feature
from pipeline.exporting.rows import ComparedRows
from pipeline.inference.batches import batches_by_length
from pipeline.inference.hypotheses import cut_answer
from pipeline.inference.metrics import Reference, alike, answers
from pipeline.setup.generation_setup import changed_generation
from pipeline.tasks.base import Batch, Task, tokenize

BATCH_ROWS = 32
SEARCHES = {"greedy": 1, "beam_4": 4}  # name -> beams
PROMPT = 8  # tokens that a language model goes on from
SHOWN_DIFFERENCES = 20  # of a search, the worst first
RESAMPLES = 1000
INTERVAL = (2.5, 97.5)  # percentiles
ORDERS = 4  # of n-grams in BLEU
SIDES = ("model", "export")


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
    is_pair = model.config.is_encoder_decoder and model.can_generate()
    compare_kind = _compare_answers if is_pair else _compare_outputs
    sections, findings = compare_kind(model, engine, task, rows, bounds)
    problems = [finding.problem for finding in findings if finding.problem is not None]
    report = {
        "rows": {"origin": rows.origin, "compared": len(rows.features), "left_out": rows.num_left_out},
        "bounds": {name: value if math.isfinite(value) else None for name, value in asdict(bounds).items()},
        "summary": "; ".join(finding.text for finding in findings),
        **sections,
    }
    return Proof(report, "; ".join(problems) or None)


def find_other_tokens(task: Task, tokenizer: PreTrainedTokenizerBase, features: Sequence[Feature]) -> str | None:
    """Say which text another tokenizer reads or writes otherwise than that of the task; None where it does not."""
    assert task.tokenizer is not None
    encoded = [tokenize(side, [row["source"] for row in features]) for side in (task.tokenizer, tokenizer)]
    decoded = [
        side.batch_decode([row["labels"] for row in features], skip_special_tokens=True)
        for side in (task.tokenizer, tokenizer)
    ]
    if tokenizer.get_added_vocab() != task.tokenizer.get_added_vocab():
        return "its tokenizer has other special tokens"
    for row, ids, their_ids, ours, theirs in zip(features, *encoded, *decoded, strict=True):
        if ids != their_ids or ours != theirs:
            return f"its tokenizer reads {row['source']!r}, or writes {ours!r}, otherwise"
    return None


@dataclass(frozen=True)
class Finding:
    """What a comparison says in one sentence, and why the export is refused for it, if it is."""

    text: str
    problem: str | None = None


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

    @property
    def distance(self) -> float:
        return math.inf if self.gap is None else abs(self.gap)

    def __str__(self) -> str:
        gap = "one answer ends" if self.gap is None else f"the model prefers its own token by {self.gap:.3g} nats"
        return f"in row {self.row}, {gap}: {self.model!r} became {self.export!r}"


@dataclass(frozen=True)
class Search:
    """The answers of both sides, in the order of the rows, those that differ, the worst first, and rows a second."""

    answers: dict[str, list[str]]
    differences: list[Difference]
    rates: dict[str, float]

    @property
    def num_near_ties(self) -> int:
        return sum(difference.distance < EXACT.near_tie for difference in self.differences)

    def describe(self) -> dict[str, Any]:
        return {
            "equal": len(self.answers["model"]) - len(self.differences),
            "different": len(self.differences),
            "near_ties": self.num_near_ties,
            "rows_per_second": self.rates,
            "differences": [asdict(difference) for difference in self.differences[:SHOWN_DIFFERENCES]],
        }

    @property
    def count(self) -> str:
        total = len(self.answers["model"])
        return f"{total - len(self.differences)} of {total} answers are equal"

    def judge_tokens(self, bounds: Bounds) -> Finding:
        """Judge the answers of greedy search."""
        num_different, near_ties = len(self.differences), self.num_near_ties
        text = f"greedy: {self.count}" + (f", {near_ties} of the others are near-ties" if num_different else "")
        is_refused = num_different > near_ties and math.isfinite(bounds.near_tie)
        return Finding(text, f"{text}; {self.differences[0]}" if is_refused else None)


def _compare_answers(
    model: PreTrainedModel, engine: Any, task: Task, rows: ComparedRows, bounds: Bounds
) -> tuple[dict[str, Any], list[Finding]]:
    """Compare tokens and scores of greedy and of beam search."""
    sections, findings = {}, []
    for name, beams in SEARCHES.items():
        search = _search(model, engine, task, rows.features, beams)
        ours = search.answers["model"]
        references = [row["target"] for row in rows.features] if rows.has_references else ours
        bleu = compare_bleu(ours, search.answers["export"], references, rows.bleu)
        bound = bounds.score if rows.has_references else bounds.own_score
        sections[name] = search.describe() | {"references": rows.has_references, "bleu": bleu}
        tokens = search.judge_tokens(bounds) if beams == 1 else Finding(f"{name}: {search.count}")
        against = name if rows.has_references else f"{name}, against the model's own answers"
        findings += [tokens, _judge_bleu(against, bleu, bound)]
    return {"searches": sections}, findings


def _search(model: PreTrainedModel, engine: Any, task: Task, features: Sequence[Feature], beams: int) -> Search:
    assert task.tokenizer is not None
    sides = dict(zip(SIDES, (model, engine), strict=True))
    changes = {"num_beams": beams, "do_sample": False, "num_return_sequences": 1, "max_time": None}
    generations = {
        side: changed_generation(stands_in.generation_config or model.generation_config, changes, f"num_beams={beams}")
        for side, stands_in in sides.items()
    }
    found: dict[str, dict[int, list[int]]] = {side: {} for side in SIDES}
    seconds = dict.fromkeys(SIDES, 0.0)
    differences = []
    for turn, (samples, batch) in enumerate(batches_by_length(model, task, features, BATCH_ROWS)):
        numbers = [sample["sample_id"] for sample in samples]
        for side in SIDES if turn % 2 else reversed(SIDES):  # neither is always the first
            begin = time.perf_counter()
            ids = _generate(task, sides[side], batch, generations[side])
            seconds[side] += time.perf_counter() - begin
            found[side] |= zip(numbers, [cut_answer(row, generations["model"]) for row in ids], strict=True)
        for place, number in enumerate(numbers):
            pair = {side: found[side][number] for side in SIDES}
            if pair["model"] != pair["export"]:
                source = {name: tensor[place : place + 1] for name, tensor in batch.items() if name != "labels"}
                differences.append(_explain(model, task, source, pair, number))
    answers = {
        side: task.tokenizer.batch_decode([found[side][row["sample_id"]] for row in features], skip_special_tokens=True)
        for side in SIDES
    }
    rates = {side: len(features) / seconds[side] for side in SIDES}
    rates["ratio"] = rates["export"] / rates["model"]
    return Search(answers, sorted(differences, key=lambda difference: -difference.distance), rates)


def _generate(task: Task, stands_in: Any, batch: Batch, generation: GenerationConfig) -> list[list[int]]:
    """Return what is generated for each row, without the start token or the prompt."""
    ids = task.generate(stands_in, batch, generation)
    assert isinstance(ids, Tensor)
    return ids[:, task.prompt_length(stands_in, batch) :].tolist()


def _explain(model: PreTrainedModel, task: Task, source: Batch, pair: dict[str, list[int]], row: int) -> Difference:
    """Ask the model what it thinks of both answers to a source (1, S)."""
    assert task.tokenizer is not None
    ours, theirs = pair["model"], pair["export"]
    if model.config.is_encoder_decoder:
        start = torch.tensor([[model.generation_config.decoder_start_token_id]], device=model.device)
        source = {"decoder_input_ids": start, **source}
        source["decoder_input_ids"] = source["decoder_input_ids"][:, : task.prompt_length(model, source)]
    logs = {side: _log_probabilities(model, source, pair[side]) for side in SIDES}  # (L, V)
    shared = min(len(ours), len(theirs))
    position = next((place for place in range(shared) if ours[place] != theirs[place]), shared)
    gap = None
    if position < shared:
        gap = float(logs["model"][position, ours[position]] - logs["model"][position, theirs[position]])
    sums = {side: sum(float(logs[side][place, token]) for place, token in enumerate(pair[side])) for side in SIDES}
    means = {side: sums[side] / max(len(pair[side]), 1) for side in SIDES}
    our_text, their_text = task.tokenizer.batch_decode([ours, theirs], skip_special_tokens=True)
    return Difference(row, our_text, their_text, position, gap, sums, means)


def _log_probabilities(model: PreTrainedModel, source: Batch, ids: list[int]) -> Tensor:
    """Return log-probabilities (L, V) of the tokens at each place of one answer, in float64.

    Args:
        source: (1, S), with what the decoder reads before the answer.
    """
    read = torch.tensor([ids[:-1]], dtype=torch.long, device=model.device)
    if model.config.is_encoder_decoder:
        start = source["decoder_input_ids"]
        logits = model(**source | {"decoder_input_ids": torch.cat([start, read], 1)}).logits[0, start.shape[1] - 1 :]
    else:
        prompt = source["input_ids"]
        logits = model(input_ids=torch.cat([prompt, read], 1)).logits[0, prompt.shape[1] - 1 :]
    return logits.double().log_softmax(-1)


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


def _judge_bleu(name: str, bleu: dict[str, Any], bound: float) -> Finding:
    low, high = bleu["interval"]
    text = (
        f"{name}: BLEU is {bleu['export']:.2f} in place of {bleu['model']:.2f} (95 % interval of the difference: "
        f"{low:.2f} to {high:.2f})"
    )
    return Finding(text, None if high >= bound else f"{text}, below {bound:g}")


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
            self._compare_logits(ours.logits.float(), theirs.logits.float())
        else:  # forecasts, in the units of the data
            scale = torch.tensor(self.stds, dtype=torch.float64, device=self.device)
            self._keep((theirs.prediction_outputs.double() - ours.prediction_outputs.double()) / scale)
        if ours.get("past_key_values") is not None:
            ours.past_key_values = {side: outputs[side].past_key_values for side in outputs}
        return ours

    def _compare_logits(self, ours: Tensor, theirs: Tensor) -> None:
        self._keep((theirs - ours) / ours.abs().max().clamp(min=1))
        own, other = ours.argmax(-1), theirs.argmax(-1)  # (B) or (B, T)
        is_other = own != other
        logs = ours[is_other].double().log_softmax(-1)  # (N, V)
        gaps = logs.gather(1, own[is_other, None]) - logs.gather(1, other[is_other, None])
        self.compared += own.numel()
        self.different += len(gaps)
        self.near_ties += int((gaps < EXACT.near_tie).sum())

    def _keep(self, difference: Tensor) -> None:
        self.differences.append(difference.abs().flatten(1).amax(1))  # (B)


def _compare_outputs(
    model: PreTrainedModel, engine: Any, task: Task, rows: ComparedRows, bounds: Bounds
) -> tuple[dict[str, Any], list[Finding]]:
    """Compare what `task.score` reads of a model, and how a language model goes on."""
    pair = _Pair(model, engine, task)
    by_row: dict[int, Tensor] = {}
    for samples, batch in batches_by_length(model, task, rows.features, BATCH_ROWS):
        first = len(pair.differences)
        task.score(pair, batch)  # type: ignore[arg-type]
        worst = torch.stack(pair.differences[first:]).amax(0)  # (B)
        by_row |= zip([sample["sample_id"] for sample in samples], worst, strict=True)
    numbers, differences = [*by_row], torch.stack([*by_row.values()])
    largest = int(differences.nan_to_num(math.inf).argmax())
    rates = {side: len(rows.features) / seconds for side, seconds in pair.seconds.items()}
    outputs = {
        "unit": "share of the largest logit" if pair.compared else "standard deviations",
        "largest_difference": float(differences[largest]),
        "row": numbers[largest],
        "choices": {"compared": pair.compared, "different": pair.different, "near_ties": pair.near_ties},
        "rows_per_second": {**rates, "ratio": rates["export"] / rates["model"]},
    }
    sections: dict[str, Any] = {"outputs": outputs}
    findings = [_judge_outputs(outputs, bounds)]
    if model.can_generate():
        prompts = [{**row, "input_ids": row["input_ids"][:PROMPT]} for row in rows.features]
        for prompt in prompts:
            prompt.pop("labels")
        search = _search(model, engine, task, prompts, beams=1)
        sections["searches"] = {"greedy": search.describe()}
        findings.append(search.judge_tokens(bounds))
    return sections, findings


def _judge_outputs(outputs: dict[str, Any], bounds: Bounds) -> Finding:
    choices, difference = outputs["choices"], outputs["largest_difference"]
    text = f"outputs differ by {difference:.2g} at most (in {outputs['unit']}, row {outputs['row']})"
    if not difference <= bounds.output:  # or not a number
        return Finding(text, f"{text}, more than {bounds.output:g}")
    if choices["compared"]:
        text += f", and {choices['different']} of {choices['compared']} choices"
        text += f", {choices['near_ties']} of them near-ties" if choices["different"] else ""
    is_refused = choices["different"] > choices["near_ties"] and math.isfinite(bounds.near_tie)
    return Finding(text, text if is_refused else None)
