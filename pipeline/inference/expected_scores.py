"""What is known of the scores before there is a model: what the tokenizer cannot write, and what BLEU cannot read."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.config import Config
from pipeline.inference.metrics import Metric, Scores, alike, answers
from pipeline.tasks.base import Feature, Task

SAMPLE = 200  # rows of validation
MIN_SHARE = 0.1  # of the rows are in a language before a warning
SPLIT_AT_SPACES = ("13a", "intl", "none")  # tokenizers of sacreBLEU that take for a word what stands between spaces


def score_warnings(config: Config, task: Task, features: Sequence[Feature], metrics: Sequence[Metric]) -> list[str]:
    """Return one line for each reason why scores of this run will be lower than its predictions deserve.

    Args:
        features: of the validation split; the first `SAMPLE` are looked at.
        metrics: those of `evaluation.metrics`.
    """
    sample = [*features[:SAMPLE]]
    if not sample or not metrics:
        return []
    warnings = []
    lost = find_lost_text(task, sample, metrics)
    if lost is not None:
        warnings.append(str(lost))
    if "sacrebleu" in config.evaluation.metrics:
        texts = [text for feature in sample for text in answers(feature["target"])]
        advice = find_unread_language(texts, config.evaluation.sacrebleu.tokenize)
        if advice is not None:
            warnings.append(advice)
    return warnings


@dataclass(frozen=True)
class LostText:
    """What a tokenizer cannot write of some references.

    Attributes:
        reference, written: one of them, and what comes back when it is encoded and decoded.
        count: how many do not come back as they stand.
        rows: of how many.
        scores: by name, the best that is possible with this tokenizer, and that of the references themselves.
    """

    reference: str
    written: str
    count: int
    rows: int
    scores: dict[str, tuple[float, float]]

    def __str__(self) -> str:
        scores = ", ".join(f"{name} {best:.4g} of {whole:.4g}" for name, (best, whole) in self.scores.items())
        return (
            f"tokenizer: {self.count} of {self.rows} targets cannot be written as they stand: "
            f"{self.reference!r} becomes {self.written!r}; the best scores possible are {scores}; tokenizer.kind=bpe "
            "with tokenizer.lowercase=false writes any text exactly"
        )


def find_lost_text(task: Task, features: Sequence[Feature], metrics: Sequence[Metric]) -> LostText | None:
    """Score the predictions of a model without mistakes; None where no metric tells them from the references.

    Args:
        features: of rows with targets, as `task.encode` gives them; at least one.
    """
    references = alike([feature["target"] for feature in features])
    texts = [answers(reference)[0] for reference in references]
    written = task.perfect_predictions([*features])
    lost = [(text, other) for text, other in zip(texts, written, strict=True) if text != other]
    if not lost:
        return None
    scores: dict[str, tuple[float, float]] = {}
    for metric in metrics:
        best, whole = _numbers(metric(written, references)), _numbers(metric(texts, references))
        scores |= {name: (best[name], whole[name]) for name in whole if best.get(name, whole[name]) != whole[name]}
    return LostText(*lost[0], len(lost), len(texts), scores) if scores else None


def _numbers(scores: Scores) -> dict[str, float]:
    return {name: value for name, value in scores.items() if not isinstance(value, str)}


@dataclass(frozen=True)
class Language:
    """A language whose words sacreBLEU finds otherwise than by spaces.

    Attributes:
        tokenize: the tokenizer of sacreBLEU for it.
        word_length: letters between two spaces, on average; in a text that somebody cut into words there are fewer.
    """

    name: str
    tokenize: str
    word_length: float


CHINESE = Language("Chinese", "zh", 3)
JAPANESE = Language("Japanese", "ja-mecab (pip install sacrebleu[ja]) or char", 3)
# Korean has spaces, but between phrases: particles and endings are parts of its "words", so sacreBLEU cuts them off.
KOREAN = Language("Korean", "ko-mecab (pip install sacrebleu[ko]) or char", 2)
# sacreBLEU has no words for these: parts of words, of a model for many languages, come nearest.
THAI, LAO, KHMER, BURMESE, TIBETAN = (
    Language(name, "flores200 (downloads a model) or char", 9)
    for name in ("Thai", "Lao", "Khmer", "Burmese", "Tibetan")
)
LANGUAGES = {  # by the first word of the Unicode name of a letter
    "CJK": CHINESE,
    "HIRAGANA": JAPANESE,
    "KATAKANA": JAPANESE,
    "HALFWIDTH": JAPANESE,
    "HANGUL": KOREAN,
    "THAI": THAI,
    "LAO": LAO,
    "KHMER": KHMER,
    "MYANMAR": BURMESE,
    "TIBETAN": TIBETAN,
}


def find_unread_language(texts: Sequence[str], tokenize: str) -> str | None:
    """Say that texts are in a language whose words are not cut at spaces, where BLEU does that; else None.

    Args:
        tokenize: as `evaluation.sacrebleu.tokenize`.
    """
    if tokenize not in SPLIT_AT_SPACES:
        return None
    by_language: dict[Language, list[str]] = {}
    for text in texts:
        if (language := _language(text)) is not None:
            by_language.setdefault(language, []).append(text)
    if not by_language:
        return None
    language, rows = max(by_language.items(), key=lambda item: len(item[1]))
    letters = sum(map(_count_letters, rows))
    if len(rows) < MIN_SHARE * len(texts) or letters <= language.word_length * sum(len(row.split()) for row in rows):
        return None
    return (
        f"evaluation.sacrebleu.tokenize: {tokenize} cuts texts at spaces, but {len(rows)} of {len(texts)} "
        f"targets look {language.name}, where BLEU then compares whole phrases; set it to {language.tokenize}"
    )


def _language(text: str) -> Language | None:
    """Return the language of `LANGUAGES` that most letters of a text belong to."""
    letters = [letter for letter in text if letter.isalpha()]
    found = Counter(LANGUAGES.get(unicodedata.name(letter, "").split(" ")[0].split("-")[0]) for letter in letters)
    if found[JAPANESE]:  # which is written in Chinese characters as well
        found[JAPANESE] += found.pop(CHINESE, 0)
    return max(found, key=lambda language: found[language], default=None)


def _count_letters(text: str) -> int:
    return sum(letter.isalpha() for letter in text)
