"""The answers of a model to a corpus, window by window: never more of it in memory than one window.

A window is so many texts that follow one another. Inside it the batches hold texts of like length. Which
texts share a window, and so a batch, depends on nothing else, so a window has the same answers in each run.
"""

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Literal, TypeAlias, TypeVar

import sentencex
import torch
from transformers import GenerationConfig, PreTrainedModel

from pipeline.data.corpus import Text
from pipeline.data.rows import BadRow, Columns, Feature, separate
from pipeline.errors import ConfigError, DataError
from pipeline.inference.batches import batches_by_length
from pipeline.inference.hypotheses import Hypothesis, Wanted, find_hypotheses
from pipeline.tasks.base import Task

WINDOW = 2048  # texts
BATCHES = 16  # in a window, of a size that is given
UNBOUNDED = 10**29  # of `model_max_length`, where a tokenizer states none
# Times as long as any text of the training, where the positions have no end. A model says nothing of use there, and one
# such text would make its batch as wide as itself.
FAR_TOO_LONG = 4
PIECE = 40  # bits of a sample's number that are its text's; those above are its sentence's

Overlong: TypeAlias = Literal["split", "refuse"]
OnBadRow: TypeAlias = Literal["error", "skip"]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Answer:
    """What a model says of one text.

    Attributes:
        source: the text; "" where it could not be read.
        hypotheses: best first; none for an empty text, or for one with a problem.
        sentences: of the text, where each was answered by itself; else 1.
        is_long: whether it, or one of its sentences, is longer than the texts of the training.
        place, problem: of a text that has no answer.
    """

    source: str
    hypotheses: list[Hypothesis]
    sentences: int = 1
    is_long: bool = False
    place: str | None = None
    problem: str | None = None


@dataclass
class Summary:
    """How many texts there were of each kind.

    Attributes:
        texts: all of them.
        empty: that had nothing to answer.
        split: that were answered sentence by sentence.
        long: that are longer than those of the training, or have such a sentence.
        failed: that have no answer; `first_failure` is the place of the first, and why.
    """

    texts: int = 0
    empty: int = 0
    split: int = 0
    long: int = 0
    failed: int = 0
    first_failure: str = ""

    def counting(self, answers: Iterable[Answer]) -> Iterator[Answer]:
        """Yield answers, and count them."""
        for answer in answers:
            self.texts += 1
            self.split += answer.sentences > 1
            self.long += answer.is_long
            self.failed += answer.problem is not None
            self.empty += not answer.hypotheses and answer.problem is None
            if answer.problem and not self.first_failure:
                self.first_failure = f"{answer.place}: {answer.problem}"
            yield answer

    def __str__(self) -> str:
        notes = {
            f"{self.empty:,} empty": self.empty,
            f"{self.split:,} split at the ends of sentences": self.split,
            f"{self.long:,} longer than any in training": self.long,
            f"{self.failed:,} without an answer (the first: {self.first_failure})": self.failed,
        }
        return ", ".join([f"{self.texts:,} texts", *(note for note, count in notes.items() if count)])

    @property
    def has_remarks(self) -> bool:
        """Whether there is something that a user should know of."""
        return bool(self.split or self.long or self.failed)


@dataclass(frozen=True)
class AnswerSettings:
    """How texts are answered.

    Attributes:
        batch_size: texts at a time; None for as many as their lengths allow, see `batches_by_length`.
        overlong: whether a text that is longer than those of the training is split at the ends of its sentences, whose
            answers are joined, or has no answer. A single sentence is answered as long as the model can read it.
        on_bad_row: whether a text that has no answer is an error, or its answer is an empty one.
        language: of the texts, as a code of ISO 639, for the ends of sentences.
        source_lang, target_lang: of all texts, where the model is told languages; its default ones if left out.
        wanted: what is asked for beside one text.
    """

    batch_size: int | None = None
    overlong: Overlong = "split"
    on_bad_row: OnBadRow = "error"
    language: str = "en"
    source_lang: str | None = None
    target_lang: str | None = None
    wanted: Wanted = field(default_factory=Wanted)


def windows(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of `size` items that follow one another; the last may be shorter."""
    iterator = iter(items)
    while window := list(islice(iterator, size)):
        yield window


def answer(
    model: PreTrainedModel,
    task: Task,
    texts: Sequence[Text],
    generation: GenerationConfig | None,
    settings: AnswerSettings,
    on_batch: Callable[[list[Feature]], None] = lambda samples: None,
) -> list[Answer]:
    """Answer the texts of one window, in their order.

    An empty or blank text is answered by an empty one, where there is nothing to read in it.

    Args:
        generation: how the model generates.
        on_batch: called with the samples of each batch that is answered.

    Raises:
        ConfigError: for a task without texts.
        DataError: for a text that has no answer, unless `on_bad_row` says otherwise.
    """
    if not task.text_columns:
        raise ConfigError("this model takes no texts; call it from Python, as its card shows")
    samples, problems = _encode(task, texts, settings)
    if problems and settings.on_bad_row == "error":
        first = next(text for text in texts if text.number in problems)
        raise DataError(
            f"{first.place}: {problems[first.number]}; change the text, or give it an empty answer by --on-bad-row skip"
        )
    found: dict[int, list[Hypothesis]] = {}
    pieces = [piece for number in samples for piece in samples[number]]
    with torch.no_grad():
        for batch_samples, batch in batches_by_length(model, task, pieces, settings.batch_size):
            hypotheses = find_hypotheses(model, task, batch_samples, batch, generation, settings.wanted)
            found |= zip([sample["sample_id"] for sample in batch_samples], hypotheses, strict=True)
            on_batch(batch_samples)
    bound = trained_length(task)
    answers = []
    for text in texts:
        own = samples.get(text.number, [])
        answers.append(
            Answer(
                text.content,
                _join([found[piece["sample_id"]] for piece in own]),
                max(1, len(own)),
                any(is_longer(task, piece, bound) for piece in own),
                *((text.place, problems[text.number]) if text.number in problems else ()),
            )
        )
    return answers


def is_first_of_text(sample: Feature) -> bool:
    """Tell whether a sample is a whole text, or its first sentence."""
    return sample["sample_id"] >> PIECE == 0


def trained_length(task: Task) -> int | None:
    """Return the tokens of the longest text that the model was trained on, `</s>` included, as its tokenizer says."""
    length = getattr(task.tokenizer, "model_max_length", UNBOUNDED)
    return None if length >= UNBOUNDED else length


def is_longer(task: Task, sample: Feature, bound: int | None) -> bool:
    return bound is not None and task.lengths(sample)[0] > bound


def _encode(
    task: Task, texts: Sequence[Text], settings: AnswerSettings
) -> tuple[dict[int, list[Feature]], dict[int, str]]:
    """Encode each text as one sample, or one that is too long as a sample for each of its sentences.

    Returns:
        By the number of the text: its samples, and the problem of one that has none. A blank one has neither.
    """
    problems = {text.number: text.problem for text in texts if text.problem is not None}
    if not task.answers_empty:
        blank = [text.number for text in texts if text.number not in problems and not text.content.strip()]
        problems |= dict.fromkeys(blank, "the prompt is empty: give a word at least to go on from")
    good = [text for text in texts if text.number not in problems and text.content.strip()]

    def encode(contents: list[str], numbers: list[int]) -> list[Feature | BadRow]:
        columns: Columns = {"source": contents, "row": numbers}
        return task.encode(task.with_languages(columns, settings.source_lang, settings.target_lang))

    encoded = encode([text.content for text in good], [text.number for text in good])
    bound = trained_length(task)
    samples: dict[int, list[Feature]] = {}
    sentences: dict[int, list[str]] = {}
    for text, row in zip(good, encoded, strict=True):
        is_overlong = task.answers_sentences and (isinstance(row, BadRow) or is_longer(task, row, bound))
        parts = _split(text.content, settings.language) if is_overlong and settings.overlong == "split" else []
        if len(parts) > 1:
            sentences[text.number] = parts
            samples[text.number] = []  # keeps its turn
        elif problem := _find_problem(task, row, bound, refused=is_overlong and settings.overlong == "refuse"):
            problems[text.number] = problem
        else:
            samples[text.number] = separate([row])[0]
    numbered = [(number, index) for number, parts in sentences.items() for index in range(len(parts))]
    ids = [number + (index << PIECE) for number, index in numbered]
    contents = [sentences[number][index] for number, index in numbered]
    for (number, index), row in zip(numbered, encode(contents, ids), strict=True):
        if problem := _find_problem(task, row, bound, refused=False):
            problems.setdefault(number, f"sentence {index + 1}: {problem}")
        else:
            samples[number] += separate([row])[0]
    return {number: pieces for number, pieces in samples.items() if number not in problems}, problems


def _split(text: str, language: str) -> list[str]:
    return [sentence.strip() for sentence in sentencex.segment(language, text) if sentence.strip()]


def _find_problem(task: Task, row: Feature | BadRow, bound: int | None, refused: bool) -> str | None:
    if isinstance(row, BadRow):
        return row.reason
    if not task.answers_sentences or bound is None:
        return None
    length = task.lengths(row)[0]
    if refused:
        return f"source has {length} tokens, where the texts of the training have {bound} at most"
    if task.max_positions[0] is None and length > FAR_TOO_LONG * bound:
        return (
            f"source has {length} tokens and no end of a sentence to split it at, where the texts of the training have "
            f"{bound} at most"
        )
    return None


def _join(parts: list[list[Hypothesis]]) -> list[Hypothesis]:
    """Join the best hypotheses of all sentences, then the second best, and so on."""
    if len(parts) == 1:
        return parts[0]
    return [_concatenate(ranked) for ranked in zip(*parts, strict=False)]  # a search may find fewer than asked for


def _concatenate(hypotheses: Sequence[Hypothesis]) -> Hypothesis:
    """Join hypotheses of sentences; the score is the sum of theirs, and alignments count all source tokens."""
    first, *others = hypotheses
    for other in others:
        first = replace(
            first,
            text=join_texts(first.text, other.text),
            score=None if first.score is None or other.score is None else first.score + other.score,
            tokens=_chain(first.tokens, other.tokens),
            probabilities=_chain(first.probabilities, other.probabilities),
            alignment=_chain(
                first.alignment,
                other.alignment and [place + len(first.source_tokens or ()) for place in other.alignment],
            ),
            attention=_block_diagonal(first, other),
            source_tokens=_chain(first.source_tokens, other.source_tokens),
        )
    return first


def _chain(first: list | None, second: list | None) -> list | None:
    return None if first is None or second is None else first + second


def _block_diagonal(first: Hypothesis, second: Hypothesis) -> list[list[float]] | None:
    """Join the weights of two sentences, neither of which attends to the other."""
    if first.attention is None or second.attention is None:
        return None
    before, behind = ([0.0] * len(sentence.source_tokens or ()) for sentence in (first, second))
    return [row + behind for row in first.attention] + [before + row for row in second.attention]


def join_texts(first: str, second: str) -> str:
    """Join two sentences by a space, but where the first ends as scripts do that write none, such as with `。`."""
    is_wide = unicodedata.east_asian_width(first[-1:] or " ") in "WF"
    return first + second if is_wide or not first or not second else f"{first} {second}"
