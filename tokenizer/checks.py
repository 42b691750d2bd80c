"""What a tokenizer must keep so that a model can be trained with it, and used elsewhere afterwards."""

import re
import unicodedata
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

UNBOUNDED = 1e9  # transformers says "no limit" with 1e30


class TokenizerError(ValueError):
    """A tokenizer that cannot be made or used; the message says what is wrong and how to fix it."""


def check(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], eos_position: str = "end") -> None:
    """Check what a shipped tokenizer promises, on real texts.

    What is required holds for any tokenizer that a sequence-to-sequence model can use. Not required, since good ones
    differ in it: an `<s>` or `<unk>`, case, accents, white space, compatibility forms, control characters, and which
    punctuation mark stands where there is one.

    Args:
        tokenizer: one just trained, or loaded from anywhere.
        texts: some of those it will meet.
        eos_position: whether the end token stands at the "end" of a text, or at its "start", as in language models.

    Raises:
        TokenizerError: when padding or the end of a sequence has no token, two of the special tokens are one, an id
            lies outside the vocabulary, truncation, padding or sampling is left on, no maximum length is set, prompts
            are not padded on the left where the end token stands in front, the end token is not added exactly once, or
            a text without unknown tokens does not survive encoding and decoding.
    """
    if eos_position == "start" and tokenizer.padding_side != "left":
        raise TokenizerError(
            "padding_side is 'right', so a language model would go on from padding: set tokenizer.padding_side = 'left'"
        )
    _check_special_tokens(tokenizer)
    _check_leftovers(tokenizer)
    for text in ("", *texts):
        ids = tokenizer(text)["input_ids"]
        _check_ids(tokenizer, text, ids, eos_position)
        decoded = tokenizer.decode(ids, skip_special_tokens=True)
        if tokenizer.unk_token_id not in ids and not _same(text, decoded):
            raise TokenizerError(
                f"{text[:80]!r} comes back as {decoded[:80]!r} from encoding and decoding: "
                "give the tokenizer the decoder that belongs to its model and pre-tokenizer"
            )


def _check_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    for name in ("pad_token", "eos_token"):
        if getattr(tokenizer, name) is None:
            raise TokenizerError(
                f"the tokenizer has no {name}: add one with tokenizer.add_special_tokens({{{name!r}: '...'}})"
            )
    seen: dict[int, str] = {}
    for name in ("pad_token", "eos_token", "bos_token", "unk_token"):
        number = getattr(tokenizer, f"{name}_id")
        if number is None:
            continue
        if number in seen:
            raise TokenizerError(
                f"{seen[number]} and {name} are one token, {getattr(tokenizer, name)!r}: the model could not tell "
                f"them apart; give {name} its own token, or None if it is not needed"
            )
        seen[number] = name
    if (highest := max(tokenizer.get_vocab().values())) >= len(tokenizer):
        raise TokenizerError(
            f"the vocabulary has an id {highest}, outside the {len(tokenizer)} rows of an embedding: "
            "number its tokens without gaps"
        )


def _check_leftovers(tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.model_max_length >= UNBOUNDED:
        raise TokenizerError("model_max_length is not set: give the number of tokens that training allows")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # a tokenizer in Python leaves no such state behind
        return
    for name, value, fix in (
        ("truncation", backend.truncation, "call tokenizer.backend_tokenizer.no_truncation()"),
        ("padding", backend.padding, "call tokenizer.backend_tokenizer.no_padding()"),
        ("BPE dropout", getattr(backend.model, "dropout", None), "set it to None in tokenizer.backend_tokenizer.model"),
        ("unigram sampling", getattr(backend.model, "alpha", None), "train or load it without alpha"),
    ):
        if value:
            raise TokenizerError(f"{name} is left on in the tokenizer ({value}): {fix} and save it again")


def _check_ids(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int], eos_position: str) -> None:
    eos, eos_id = tokenizer.eos_token, tokenizer.eos_token_id
    if eos_position == "start" and (not ids or ids[0] != eos_id):
        raise TokenizerError(
            f"{text[:80]!r} is encoded as {ids[:20]}, without {eos} ({eos_id}) in front, so the model cannot tell "
            "where a text begins: set a post-processor that puts it there"
        )
    if eos_position == "end" and (not ids or ids[-1] != eos_id):
        raise TokenizerError(
            f"{text[:80]!r} is encoded as {ids[:20]}, without {eos} ({eos_id}) at its end, so the model never learns "
            "to stop: set a post-processor that appends it"
        )
    if ids.count(eos_id) > 1:
        fix = "set split_special_tokens=True" if eos in text else "let only one post-processor append it"
        raise TokenizerError(f"{text[:80]!r} has {ids.count(eos_id)} {eos} ({eos_id}) in it, not one: {fix}")
    if max(ids) >= len(tokenizer) or min(ids) < 0:
        raise TokenizerError(
            f"{text[:80]!r} is encoded as {ids[:20]}, with an id outside the vocabulary of {len(tokenizer)}: "
            "number its tokens without gaps"
        )


def _same(text: str, decoded: str) -> bool:
    # SentencePiece and Metaspace take a ▁ for a space; other tokenizers do not.
    return _essence(decoded) in (_essence(text), _essence(text.replace("▁", " ")))


def _essence(text: str) -> str:
    """Reduce a text to letters and digits without case and accents, with one dot for each run of punctuation."""
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    characters = (
        character if character.isalnum() else "."
        for character in folded
        if unicodedata.category(character)[0] not in "MZC" and character != "\ufffd"
    )
    return re.sub(r"\.+", ".", "".join(characters))
