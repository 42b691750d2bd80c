"""The languages of rows: the tokens that tell a model from which language, and into which, it is to translate.

Our own models have a token for each target language, `<2de>` (Johnson et al. 2017, https://aclanthology.org/Q17-1024),
in front of the source or first in the decoder. Tokenizers of mBART, mBART-50, M2M100 and NLLB have their own tokens,
and put them around sources and targets. Both are the same here: what stands around the texts of a row, by its
languages.

A token that the decoder is given, and need not find, is in no row's labels, so no loss, accuracy or count has it.
"""

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from pipeline.data.rows import shorten
from pipeline.data_config import CODE

TAG = re.compile(rf"<2({CODE})>")  # of a target language
LANGUAGE = re.compile(r"\w+")  # a special token without brackets: fra_Latn, __fra__
SHOWN_LANGUAGES = 12
# Their decoder begins with the last label, and not with a start token.
TURN_THE_LAST_LABEL_TO_THE_FRONT = ("mbart", "plbart")
IN_DECODER = "decoder"  # as `data.target_lang_in` has it


@dataclass(frozen=True)
class SourceMarks:
    """The tokens in front of a source and behind it."""

    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True)
class TargetMarks:
    """What a model is told of a target language.

    Attributes:
        in_source: tokens in front of the source.
        in_decoder: tokens that the decoder reads before the target, the start token first; none where it reads the
            labels behind a start token, as without languages.
        after: tokens behind the target that are learned.
    """

    in_source: tuple[int, ...] = ()
    in_decoder: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


@dataclass(frozen=True)
class Languages:
    """The languages that a model can be told; none for most models.

    Attributes:
        sources: code -> marks, where sources are marked with their language.
        targets: code -> marks.
        default_source, default_target: of rows that do not name one.
        replace_special_tokens: whether the marks stand in the place of the tokens that the tokenizer would add.
    """

    sources: Mapping[str, SourceMarks] = field(default_factory=dict)
    targets: Mapping[str, TargetMarks] = field(default_factory=dict)
    default_source: str | None = None
    default_target: str | None = None
    replace_special_tokens: bool = False

    @property
    def tagged(self) -> tuple[str, ...]:
        """The target languages of a model of ours; a tokenizer of others has more than a model was trained on."""
        return () if self.replace_special_tokens else tuple(self.targets)

    @property
    def num_forced(self) -> int:
        """How many tokens the decoder is given, the start token among them; 0 where it is told nothing."""
        return max((len(marks.in_decoder) for marks in self.targets.values()), default=0)

    @property
    def num_told(self) -> int:
        """How many of those stand behind the start token."""
        return max(0, self.num_forced - 1)

    def find_problem(self, row: Mapping[str, Any]) -> str | None:
        """Say why the languages of a row cannot be told to the model; None where they can."""
        problem = _find_problem("target_lang", row, self.targets, self.default_target)
        return problem or _find_problem("source_lang", row, self.sources, self.default_source)

    def of(self, row: Mapping[str, Any]) -> dict[str, str]:
        """Return the languages of a row, `source_lang` and `target_lang`, as far as they are known."""
        named = {
            "source_lang": row.get("source_lang", self.default_source),
            "target_lang": row.get("target_lang", self.default_target),
        }
        return {name: code for name, code in named.items() if isinstance(code, str)}


def _find_problem(name: str, row: Mapping[str, Any], known: Collection[str], default: str | None) -> str | None:
    code = row.get(name, default)
    if not known:
        if code is None or (isinstance(code, str) and re.fullmatch(CODE, code)):
            return None
        return f"{name} is {shorten(code)}, and not the code of a language, such as de"
    if code is None:
        return f"{name} is missing, where the model must be told it{choose_from(known)}"
    if not isinstance(code, str) or code not in known:
        return f"{name} is {shorten(code)}, which the model does not know{choose_from(known, str(code))}"
    return None


def choose_from(languages: Collection[str], wrong: str = "") -> str:
    """Return `; choose from X, Y, ...`, those first that resemble a wrong name; nothing where there are none."""
    close = difflib.get_close_matches(wrong, languages, n=3)
    some = [*close, *(name for name in languages if name not in close and not name.startswith("_"))]
    shown = f"; choose from {', '.join(some[:SHOWN_LANGUAGES])}{', ...' if len(some) > SHOWN_LANGUAGES else ''}"
    return shown if some else ""


# ---- our own models


def target_tag(code: str) -> str:
    """Return the token of a target language."""
    return f"<2{code}>"


def find_tags(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the target languages that a tokenizer has tokens for: code -> id, in the order of the ids."""
    found = {match[1]: number for token, number in tokenizer.get_vocab().items() if (match := TAG.fullmatch(token))}
    return dict(sorted(found.items(), key=lambda item: item[1]))


def languages_of_model(model: PreTrainedConfig) -> Languages:
    """Return the languages that the config of a model of ours, or of its stock form, names; none where it names none.

    Its `languages` are code -> id of the tag, and its `target_lang_in` says where the tag stands.
    """
    tags = getattr(model, "languages", None) or {}
    in_decoder = getattr(model, "target_lang_in", None) == IN_DECODER
    targets = {
        code: TargetMarks(in_decoder=(model.decoder_start_token_id, tag)) if in_decoder else TargetMarks((tag,))
        for code, tag in tags.items()
    }
    return Languages(targets=targets, default_target=next(iter(targets)) if len(targets) == 1 else None)


# ---- tokenizers with languages


def has_languages(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether a tokenizer marks texts with their language, as those of mBART, M2M100 and NLLB do."""
    return hasattr(tokenizer, "set_tgt_lang_special_tokens")


def known_languages(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Map the names of a tokenizer's languages to its own for them, such as both java and __java__ to __java__."""
    numbers = getattr(tokenizer, "lang_code_to_id", None) or {
        token: number
        for token, number in zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
        if LANGUAGE.fullmatch(token)
    }
    names = [name for name, number in numbers.items() if number != tokenizer.unk_token_id]  # not in this vocabulary
    return {name.strip("_"): name for name in names} | {name: name for name in names}


def languages_of_tokenizer(tokenizer: PreTrainedTokenizerBase, model: PreTrainedConfig) -> Languages:
    """Return the languages of a tokenizer with what it puts around texts of each, and what the decoder reads of that.

    With those of mBART-50, mBART and M2M100, a target, what the decoder reads and what it learns are

        `fr_XX a b </s>`     `</s> fr_XX a b`     `a b </s>`, behind one label that is ignored
        `a b </s> fr_XX`     `fr_XX a b`          `a b </s>`
        `__fr__ a b </s>`    `</s> __fr__ a b`    `a b </s>`, likewise

    Args:
        tokenizer: whose languages change meanwhile, and are as before afterwards.
    """
    known = known_languages(tokenizer)
    before = (tokenizer.src_lang, tokenizer.tgt_lang)
    sources, targets = {}, {}
    try:
        for code, name in known.items():
            tokenizer.set_src_lang_special_tokens(name)
            sources[code] = SourceMarks(tuple(tokenizer.prefix_tokens), tuple(tokenizer.suffix_tokens))
            tokenizer.set_tgt_lang_special_tokens(name)
            targets[code] = _target_marks(tokenizer, model)
    finally:
        tokenizer.set_src_lang_special_tokens(before[0])
    default_source, default_target = (code if code in known else None for code in before)
    return Languages(sources, targets, default_source, default_target, replace_special_tokens=True)


def _target_marks(tokenizer: PreTrainedTokenizerBase, model: PreTrainedConfig) -> TargetMarks:
    """Return the marks of the target language that is set."""
    prefix, suffix = tuple(tokenizer.prefix_tokens), tuple(tokenizer.suffix_tokens)
    end = suffix.index(tokenizer.eos_token_id) + 1
    turns = model.model_type in TURN_THE_LAST_LABEL_TO_THE_FRONT
    start = suffix[-1] if turns else model.decoder_start_token_id
    tells = bool(prefix) or (turns and end < len(suffix))  # or only the source's language is told, as by NLLB of old
    return TargetMarks(in_decoder=(start, *prefix) if tells else (), after=suffix[:end])
