"""What a tokenizer must keep so that a model can be trained with it, and used elsewhere afterwards."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

UNBOUNDED = 1e9  # transformers says "no limit" with 1e30


class TokenizerError(ValueError):
    """A tokenizer that cannot be made or used; the message says what is wrong and how to mend it."""


def check(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
    """Checks what a shipped tokenizer promises, on real texts.

    Args:
        tokenizer: one just trained, or loaded from anywhere.
        texts: some of those it will meet.

    Raises:
        TokenizerError: when padding or the end of a sequence has no token of its own, `</s>` is not appended exactly
            once, an id lies outside the vocabulary, truncation, padding or BPE dropout is left on, no maximum length
            is set, or no text at all survives encoding and decoding.
    """
    _check_special_tokens(tokenizer)
    _check_leftovers(tokenizer)
    survived = 0
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        if ids.count(tokenizer.eos_token_id) != 1 or ids[-1] != tokenizer.eos_token_id:
            raise TokenizerError(
                f"{text[:80]!r} is encoded as {ids[:20]}, without exactly one {tokenizer.eos_token} "
                f"({tokenizer.eos_token_id}) at its end: set a post-processor that appends it, or the model never stops"
            )
        if max(ids) >= len(tokenizer):
            raise TokenizerError(f"{text[:80]!r} gives the id {max(ids)}, outside the vocabulary of {len(tokenizer)}")
        decoded = tokenizer.decode(ids, skip_special_tokens=True)
        survived += _squeezed(decoded) == _squeezed(text) or tokenizer.unk_token_id in ids
    # Lower-casing and the like are a tokenizer's right, so single texts may change; all of them must not.
    if texts and survived < len(texts) / 100:
        raise TokenizerError(
            f"decoding gives back {survived} of {len(texts)} texts, not {texts[0][:80]!r} for one: "
            "the decoder does not belong to this tokenizer"
        )


def _check_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    for name in ("pad_token", "eos_token"):
        if getattr(tokenizer, name) is None:
            raise TokenizerError(f"the tokenizer has no {name}: set it, as tokenizer.{name} = '...'")
    ids = {name: getattr(tokenizer, f"{name}_id") for name in ("pad_token", "bos_token", "eos_token", "unk_token")}
    if ids["pad_token"] == ids["eos_token"]:
        raise TokenizerError(
            "pad_token and eos_token are one token: the model would never learn to stop; separate them"
        )
    for name, number in ids.items():
        if number is not None and number >= len(tokenizer):
            raise TokenizerError(f"{name} has the id {number}, outside the vocabulary of {len(tokenizer)}")


def _check_leftovers(tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.model_max_length > UNBOUNDED:
        raise TokenizerError("model_max_length is not set: give the number of tokens that training allows")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # a tokenizer in Python leaves no such state behind
        return
    for name, value in (
        ("truncation", backend.truncation),
        ("padding", backend.padding),
        ("BPE dropout", getattr(backend.model, "dropout", None)),
    ):
        if value:
            raise TokenizerError(f"{name} is left on in the tokenizer ({value}): switch it off before saving")


def _squeezed(text: str) -> str:
    return "".join(text.split())
