"""From texts, or from a SentencePiece model, to a tokenizer that `AutoTokenizer` loads anywhere."""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import SentencePieceExtractor
from transformers.tokenization_utils_base import generate_merges

from tokenizer.checks import TokenizerError

PAD, BOS, EOS, UNK = SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")  # ids 0, 1, 2, 3
SPACE = "▁"  # SentencePiece's mark of a word's beginning

Parts = tuple[Tokenizer, trainers.Trainer]


def byte_level_bpe(vocab_size: int) -> Parts:
    """Merges of bytes (Sennrich et al. 2016, https://aclanthology.org/P16-1162; bytes as in GPT-2).

    Gives back any text exactly, and knows no unknown token.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()  # without it, bytes unseen in training vanish without a word
    if vocab_size < len(alphabet) + len(SPECIAL_TOKENS):
        raise TokenizerError(
            f"tokenizer.vocab_size: {vocab_size} is too small for bpe, which needs {len(alphabet)} bytes and "
            f"{len(SPECIAL_TOKENS)} special tokens; give at least {len(alphabet) + len(SPECIAL_TOKENS)}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        initial_alphabet=alphabet,
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )


def unigram(vocab_size: int) -> Parts:
    """The likeliest segmentation under a unigram model (Kudo 2018, https://aclanthology.org/P18-1007).

    Runs of spaces are not given back, nor characters unseen in training.
    """
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.Replace(Regex(r"\s+"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer, trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), unk_token=UNK, show_progress=False
    )


def wordpiece(vocab_size: int) -> Parts:
    """Longest pieces first, `##` inside a word (Wu et al. 2016, https://arxiv.org/abs/1609.08144).

    Punctuation stands as tokens of its own; the decoder closes up the space before `.,!?` and in English
    contractions, so spacing around other punctuation may differ from the original.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return tokenizer, trainers.WordPieceTrainer(
        vocab_size=vocab_size, min_frequency=2, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )


def word(vocab_size: int) -> Parts:
    """Whole words between white space; for text that is tokenised already. One space joins them when decoded."""
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer, trainers.WordLevelTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )


def character(vocab_size: int) -> Parts:
    """Every character is a token, white space included; gives back whatever was seen in training exactly."""
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer, trainers.WordLevelTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )


KINDS: dict[str, Callable[[int], Parts]] = {
    "bpe": byte_level_bpe,
    "unigram": unigram,
    "wordpiece": wordpiece,
    "word": word,
    "character": character,
}


def train(
    texts: Iterable[str],
    kind: str = "bpe",
    vocab_size: int = 8000,
    *,
    max_length: int = 512,
    max_texts: int = 1_000_000,
) -> PreTrainedTokenizerFast:
    """Learns a vocabulary.

    Args:
        texts: read once, and no more than `max_texts` of them: on very large corpora the trainers run out of memory.
        kind: one of `KINDS`.
        vocab_size: tokens at most, `<pad> <s> </s> <unk>` (ids 0 to 3) included.
        max_length: the `model_max_length` that the tokenizer will state.

    Returns:
        A tokenizer that appends `</s>` to every text, and takes `</s>` written in a text for what it is: text.

    Raises:
        TokenizerError: for an unknown kind, too small a vocabulary, or texts with nothing in them.
    """
    if kind not in KINDS:
        raise TokenizerError(f"tokenizer.kind: {kind!r} is unknown; there are: {', '.join(KINDS)}")
    tokenizer, trainer = KINDS[kind](vocab_size)
    _guard(tokenizer, SPECIAL_TOKENS)
    tokenizer.train_from_iterator(_lines(itertools.islice(texts, max_texts)), trainer)
    if tokenizer.get_vocab_size() <= len(SPECIAL_TOKENS):
        raise TokenizerError("there is no text to train a tokenizer on: all of it is empty")
    return _finish(tokenizer, dict(zip(("pad", "bos", "eos", "unk"), SPECIAL_TOKENS, strict=True)), max_length)


def _guard(tokenizer: Tokenizer, special_tokens: Iterable[str]) -> None:
    """Keeps special tokens out of reach of texts: one that is written out is split behind its first character.

    `split_special_tokens` alone does not: a model whose vocabulary holds `</s>` finds it there like any other word.
    """
    pattern = "|".join(f"{re.escape(token[0])}(?={re.escape(token[1:])})" for token in special_tokens)
    guard = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    before = tokenizer.pre_tokenizer
    tokenizer.pre_tokenizer = guard if before is None else pre_tokenizers.Sequence([before, guard])


def _lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        # A newline left on fills the vocabulary with tokens that end in one.
        if stripped := text.rstrip("\r\n"):
            yield stripped


def import_sentencepiece(path: str | Path, *, max_length: int = 512) -> PreTrainedTokenizerFast:
    """Reads a SentencePiece model (unigram or BPE), keeping its ids and its segmentation.

    A `<pad>`, `<s>` or `</s>` that the model lacks is added behind its last piece.

    Raises:
        TokenizerError: for a file that is no SentencePiece model, or one of another type.
    """
    try:
        proto = SentencePieceExtractor(str(path)).proto
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read: {error}") from error
    except Exception as error:  # protobuf's DecodeError, whose module differs between its implementations
        raise TokenizerError(f"{path}: this is no SentencePiece model ({error})") from error
    spec = proto.trainer_spec
    if not proto.pieces or spec.model_type not in (1, 2):
        raise TokenizerError(f"{path}: only SentencePiece models of type unigram or bpe can be imported")
    tokenizer = Tokenizer(_sentencepiece_unigram(proto) if spec.model_type == 1 else _sentencepiece_bpe(proto))
    tokenizer.normalizer = _sentencepiece_normalizer(proto.normalizer_spec)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        + ([decoders.Strip(" ", 1, 0)] if proto.normalizer_spec.add_dummy_prefix else [])
    )
    special = {
        name: proto.pieces[index].piece if index >= 0 else default
        for name, index, default in (
            ("pad", spec.pad_id, PAD),
            ("bos", spec.bos_id, BOS),
            ("eos", spec.eos_id, EOS),
            ("unk", spec.unk_id, UNK),
        )
    }
    if symbols := [piece.piece for piece in proto.pieces if piece.type == piece.USER_DEFINED]:
        pattern = "|".join(re.escape(symbol) for symbol in sorted(symbols, key=len, reverse=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    _guard(tokenizer, special.values())
    return _finish(tokenizer, special, max_length)


def _sentencepiece_unigram(proto) -> models.Unigram:
    best = max(piece.score for piece in proto.pieces if piece.type == piece.NORMAL)
    pieces = [
        # SentencePiece always prefers a user-defined symbol, by this score:
        # https://github.com/google/sentencepiece/blob/v0.2.0/src/unigram_model.cc
        (piece.piece, len(piece.piece) * best - 0.1 if piece.type == piece.USER_DEFINED else piece.score)
        for piece in proto.pieces
    ]
    return models.Unigram(pieces, unk_id=proto.trainer_spec.unk_id, byte_fallback=proto.trainer_spec.byte_fallback)


def _sentencepiece_bpe(proto) -> models.BPE:
    ids = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    # SentencePiece merges the pair that makes the piece of the best score; a merge's rank is its place in this list.
    merges = generate_merges(ids, {piece.piece: piece.score for piece in proto.pieces})
    return models.BPE(
        ids,
        merges,
        unk_token=proto.trainer_spec.unk_piece,
        fuse_unk=True,
        byte_fallback=proto.trainer_spec.byte_fallback,
        ignore_merges=any(piece.type == piece.USER_DEFINED for piece in proto.pieces),  # these are whole already
    )


def _sentencepiece_normalizer(spec) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        # Spaces alone: normalizers.Strip would take a newline too.
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(" "))
    if spec.escape_whitespaces:
        steps.append(normalizers.Replace(" ", SPACE))
    return normalizers.Sequence(steps)


def _finish(tokenizer: Tokenizer, special: dict[str, str], max_length: int) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special.values()])
    eos = special["eos"]
    # No <s>: the model's shift puts it before the target, and only there.
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {eos}", pair=f"$A {eos} $B {eos}", special_tokens=[(eos, tokenizer.token_to_id(eos))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{f"{name}_token": token for name, token in special.items()},
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="right",
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
    )
