"""What a model says of a batch beside one text a row: several answers, their scores, probabilities and alignments.

Probabilities are those of the model, before anything warps them or bans tokens (temperature, top_k, forced tokens).
They come from one forward pass over the answers under teacher forcing, so they mean the same for every search.

Shapes: B samples, N hypotheses of each, S source length, T target length, P prompt length, V vocabulary.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from pipeline.data.rows import Feature
from pipeline.decoding.search import complete
from pipeline.errors import ConfigError
from pipeline.inference.attention import eager_attention, readable_tokens
from pipeline.inference.engines.base import Engine
from pipeline.inference.sampling import MinimumBayesRisk, seeded
from pipeline.models.modeling_seq2seq import IGNORED
from pipeline.tasks.base import Batch, Task
from pipeline.tasks.text_classification import TextClassification

NOT_FOUND = -1.0e8  # a search that found fewer sequences than it should fills up with some that score less
MOST_LOGITS = 2**28  # in one forward pass, 1 GiB
TORCH = "take --engine torch"


@dataclass(frozen=True, kw_only=True)  # as one flag is easily taken for another
class Wanted:
    """What is asked for beside one text a row.

    Attributes:
        num_best: hypotheses of each row: the best of as many beams or more, or so many samples.
        seed: of sampling; the random numbers of a row follow from it and the `sample_id` alone, see `SeededDraws`.
        mbr: samples of each row among which `MinimumBayesRisk` chooses the text, with this seed, or 0; nothing else can
            be asked of it.
    """

    num_best: int = 1
    scores: bool = False
    token_probabilities: bool = False
    alignments: bool = False
    attentions: bool = False
    seed: int | None = None
    mbr: int | None = None

    @property
    def names(self) -> list[str]:
        """What it asks for beside the text."""
        names = ("scores", "token_probabilities", "alignments", "attentions")
        return ["num_best"] * (self.num_best > 1) + [name for name in names if getattr(self, name)]


@dataclass(frozen=True)
class Hypothesis:
    """An answer, and what was asked of it.

    Attributes:
        text: of a language model, the prompt with its continuation; of a classifier, a class.
        score: of beams, what transformers calls `sequences_scores`: the summed log-probability, as the search warps it,
            divided by length ** length_penalty. Else the summed log-probability in the model, of the tokens or the
            class. In nats.
        tokens: what was generated, the end token included, without the prompt.
        probabilities: of each of the tokens in the model, after those before it.
        alignment: for each of the tokens, which of the source tokens is attended to most where it is predicted: by the
            cross-attention of the last layer, the mean of its heads.
        source_tokens: those that the places in `alignment` count.
        attention: the weights of all of them there, (T, S).
    """

    text: str
    score: float | None = None
    tokens: list[str] | None = None
    probabilities: list[float] | None = None
    alignment: list[int] | None = None
    source_tokens: list[str] | None = None
    attention: list[list[float]] | None = None


@torch.no_grad()
def find_hypotheses(
    model: PreTrainedModel,
    task: Task,
    samples: list[Feature],
    batch: Batch,
    generation: GenerationConfig | None,
    wanted: Wanted,
) -> list[list[Hypothesis]]:
    """Return the best hypotheses of each sample of a batch, best first.

    With `Wanted()` it is `task.predict`, and costs no more. A search may find fewer than `num_best`, and samples may be
    equal.

    Args:
        samples: of `task.encode`.
        batch: of `task.collate(samples)`, on the model's device.
        generation: how a model generates; its own generation config where left out.

    Raises:
        ConfigError: for what the model, its engine or the generation config cannot give.
    """
    if wanted.mbr and wanted.names:
        raise ConfigError(f"{wanted.names[0]}: mbr gives one text a row, and says no more of it; leave one of both out")
    if wanted.mbr:
        mbr = MinimumBayesRisk(wanted.mbr, wanted.seed or 0)
        return [[Hypothesis(text)] for text in mbr.predict(model, task, samples, batch, generation)]
    if not wanted.names:
        with seeded(model, samples, generation, wanted.seed):
            return [[Hypothesis(text)] for text in task.predict(model, batch, generation)]
    if isinstance(task, TextClassification):
        return _rank_classes(model, task, batch, wanted)
    if not model.can_generate():
        raise ConfigError(f"{wanted.names[0]}: a {type(model).__name__} generates no text; leave it out")
    assert task.tokenizer is not None
    tokenizer, generation = task.tokenizer, complete(generation, model)
    _check(model, generation, wanted)
    has_beams = generation.num_beams not in (None, 1)
    # An engine gives no more than it finds, so it needs no scores to tell which those are.
    is_scored = has_beams and (wanted.scores or (wanted.num_best > 1 and not isinstance(model, Engine)))
    generation.update(num_return_sequences=wanted.num_best, return_dict_in_generate=is_scored, output_scores=is_scored)
    with seeded(model, samples, generation, wanted.seed):
        found = task.generate(model, batch, generation)
    ids = found if isinstance(found, Tensor) else found.sequences  # (B * N, P + T)
    prompt = task.prompt_length(model, batch)
    answers = [cut_answer(row, generation) for row in ids[:, prompt:].tolist()]
    forced: list[Forced | None] = [None] * len(answers)
    scores = [0.0] * len(answers)  # where nobody asks for those of beams, which are in order
    if wanted.token_probabilities or wanted.alignments or wanted.attentions or not has_beams:
        forced = [*_force(model, len(tokenizer), batch, ids[:, :prompt], answers, wanted)]
    if not isinstance(found, Tensor):
        scores = found.sequences_scores.tolist()
    elif not has_beams:
        scores = [math.fsum(one.log_probabilities) for one in forced if one]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    rows = [Row(*row) for row in zip(texts, answers, scores, forced, strict=True)]
    return [
        [_describe(tokenizer, sample, row, wanted) for row in _best_first(rows[first : first + wanted.num_best])]
        for first, sample in zip(range(0, len(rows), wanted.num_best), samples, strict=True)
    ]


def cut_answer(ids: list[int], generation: GenerationConfig) -> list[int]:
    """Return what stands before the padding, with its end token.

    Args:
        ids: as they were generated, without the start token or prompt.
    """
    eos = generation.eos_token_id
    ends = eos if isinstance(eos, list) else [eos]
    for place, token in enumerate(ids):
        if token in ends:
            return ids[: place + 1]
    length = len(ids)
    while length and ids[length - 1] == generation.pad_token_id:
        length -= 1
    return ids[:length]


def _check(model: PreTrainedModel, generation: GenerationConfig, wanted: Wanted) -> None:
    beams = generation.num_beams or 1
    if beams < wanted.num_best and not (generation.do_sample and beams == 1):
        other = "num_beams=1" if generation.do_sample else "do_sample=true"
        raise ConfigError(
            f"num_best: {wanted.num_best} hypotheses need as many beams, and generation.num_beams is {beams}; set "
            f"num_beams={wanted.num_best} or more, or sample each by itself: {other}"
        )
    asked = "alignments" if wanted.alignments else "attentions" if wanted.attentions else None
    if asked and not model.config.is_encoder_decoder:
        raise ConfigError(f"{asked}: a {type(model).__name__} has no source to attend to; leave them out")
    if asked and not gives_attentions(model):
        raise ConfigError(f"{asked}: a {type(model).__name__} gives no attentions; leave them out, or {TORCH}")


def gives_attentions(model: PreTrainedModel) -> bool:
    """Tell whether a model has a source to attend to, and its engine says where it does."""
    return model.config.is_encoder_decoder and getattr(model, "gives_attentions", True)  # an engine's attribute


def _rank_classes(
    model: PreTrainedModel, task: TextClassification, batch: Batch, wanted: Wanted
) -> list[list[Hypothesis]]:
    """Return the most probable classes of each text, all of them where there are fewer than `num_best`."""
    for name in ("token_probabilities", "alignments", "attentions"):
        if getattr(wanted, name):
            raise ConfigError(f"{name}: a classifier generates no tokens; leave them out")
    logs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float().log_softmax(-1)
    best = logs.topk(min(wanted.num_best, logs.shape[-1]))  # (B, N)
    return [
        [
            Hypothesis(task.labels[number], score if wanted.scores else None)
            for number, score in zip(numbers, scores, strict=True)
        ]
        for numbers, scores in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


@dataclass(frozen=True)
class Forced:
    """What the model says of an answer under teacher forcing, token by token."""

    log_probabilities: list[float]
    attention: Tensor | None  # (T, S)


@dataclass(frozen=True)
class Row:
    """One of the B * N rows that were generated."""

    text: str
    ids: list[int]
    score: float
    forced: Forced | None


def _force(
    model: PreTrainedModel, vocabulary: int, batch: Batch, prompts: Tensor, answers: list[list[int]], wanted: Wanted
) -> list[Forced]:
    """Judge all answers (B * N) to the samples of a batch, so many at a time that their logits fit into memory.

    Args:
        vocabulary: size, in tokens.
        prompts: (B * N, P), what stands before each answer.
    """
    step = max(1, MOST_LOGITS // (vocabulary * max(1, *map(len, answers))))
    sources = torch.arange(len(answers)) // wanted.num_best
    forced: list[Forced] = []
    for first in range(0, len(answers), step):
        rows = slice(first, first + step)
        inputs = {name: batch[name][sources[rows].to(model.device)] for name in ("input_ids", "attention_mask")}
        forced += _force_some(model, inputs, prompts[rows], answers[rows], wanted.alignments or wanted.attentions)
    return forced


def _force_some(
    model: PreTrainedModel, inputs: Batch, prompts: Tensor, answers: list[list[int]], with_attentions: bool
) -> list[Forced]:
    rows = [torch.tensor(answer or [0], device=model.device) for answer in answers]
    labels = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)  # (B, T)
    targets = labels.clamp(min=0)
    ids = torch.cat([prompts, targets], 1)[:, :-1]  # (B, P + T - 1)
    if isinstance(model, Engine):
        told = prompts.shape[1] - 1
        padded = nn.functional.pad(labels, (told, 0), value=IGNORED)  # (B, P + T - 1)
        logs = -model(**inputs, decoder_input_ids=ids, labels=padded).losses[:, told:]
        attentions = None
    else:
        with eager_attention(model) if with_attentions else nullcontext():
            outputs = model(**_forward_inputs(model, inputs, ids, labels), output_attentions=with_attentions)
        logits = outputs.logits[:, prompts.shape[1] - 1 :].float()  # (B, T, V)
        logs = logits.gather(-1, targets[..., None]).squeeze(-1) - logits.logsumexp(-1)
        attentions = _attend(model, outputs, prompts.shape[1]) if with_attentions else None
    return [
        Forced(logs[row, : len(answer)].tolist(), None if attentions is None else attentions[row, : len(answer)])
        for row, answer in enumerate(answers)
    ]


def _forward_inputs(model: PreTrainedModel, inputs: Batch, ids: Tensor, labels: Tensor) -> dict[str, Any]:
    """Return the arguments of `forward` by which every token of `ids` is given, and the next one predicted.

    Not by labels: some models would make other decoder inputs of them, such as mBART of an answer that does not end.
    """
    if model.config.is_encoder_decoder:
        return {**inputs, "decoder_input_ids": ids, "use_cache": False}
    is_real = labels[:, :-1].ne(IGNORED).to(inputs["attention_mask"].dtype)
    return {"input_ids": ids, "attention_mask": torch.cat([inputs["attention_mask"], is_real], 1), "use_cache": False}


def _attend(model: PreTrainedModel, outputs: Any, prompt: int) -> Tensor:
    """Return for each target token the weights of the source tokens, (B, T, S)."""
    attentions = outputs.get("cross_attentions")
    if not attentions:
        raise ConfigError(f"alignments: a {type(model).__name__} gives no cross-attention; leave them out")
    return attentions[-1].float().mean(1)[:, prompt - 1 :]


def _best_first(rows: list[Row]) -> list[Row]:
    """Sort the answers to a sample, without those that a search did not find; it always finds the first."""
    return sorted(
        [row for number, row in enumerate(rows) if row.score > NOT_FOUND or not number], key=lambda row: -row.score
    )


def _describe(tokenizer: PreTrainedTokenizerBase, sample: Feature, row: Row, wanted: Wanted) -> Hypothesis:
    given: dict[str, Any] = {}
    if wanted.scores:
        given["score"] = row.score
    if wanted.token_probabilities or wanted.alignments or wanted.attentions:
        given["tokens"] = readable_tokens(tokenizer, row.ids)
    if row.forced and wanted.token_probabilities:
        given["probabilities"] = [math.exp(log) for log in row.forced.log_probabilities]
    if row.forced and row.forced.attention is not None:
        if wanted.alignments:
            given["alignment"] = row.forced.attention.argmax(-1).tolist()
        if wanted.attentions:
            given["attention"] = row.forced.attention[:, : len(sample["input_ids"])].tolist()
        given["source_tokens"] = readable_tokens(tokenizer, sample["input_ids"])
    return Hypothesis(row.text, **given)
