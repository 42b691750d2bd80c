"""From texts, or from a SentencePiece model, to a tokenizer that `AutoTokenizer` loads anywhere."""

import difflib
import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import SentencePieceExtractor
from transformers.tokenization_utils_base import generate_merges

from tokenizer.checks import TokenizerError

PAD, BOS, EOS, UNK = SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")  # ids 0, 1, 2, 3
SPACE = "▁"  # SentencePiece's mark of a word's beginning
SENTENCEPIECE_UNIGRAM, SENTENCEPIECE_BPE = 1, 2  # TrainerSpec.ModelType

Parts = tuple[Tokenizer, trainers.Trainer]


def byte_level_bpe(vocab_size: int, min_frequency: int) -> Parts:
    """Make a tokenizer of merged bytes (Sennrich et al. 2016, https://aclanthology.org/P16-1162; bytes as in GPT-2).

    It gives back any text exactly, and has no unknown token.
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
        min_frequency=min_frequency,
        initial_alphabet=alphabet,
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )


def unigram(vocab_size: int, min_frequency: int) -> Parts:
    """Make a tokenizer that takes the likeliest segmentation (Kudo 2018, https://aclanthology.org/P18-1007).

    It gives back single spaces for runs of white space and for `▁`, and no characters unseen in training. The algorithm
    prunes by likelihood and has no minimum frequency.
    """
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.Replace(Regex(r"\s+"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer, trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), unk_token=UNK, show_progress=False
    )


def wordpiece(vocab_size: int, min_frequency: int) -> Parts:
    """Make a tokenizer that takes the longest pieces first (Wu et al. 2016, https://arxiv.org/abs/1609.08144).

    Pieces inside a word begin with `##`. Punctuation marks are separate tokens, and the decoder closes up the space
    before `.,!?` only: `(a-b), it's` comes back as `( a - b ), it ' s`. A word with one character unseen in training,
    or of over 100 characters, is unknown as a whole.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return tokenizer, trainers.WordPieceTrainer(
        vocab_size=vocab_size, min_frequency=min_frequency, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )


def word(vocab_size: int, min_frequency: int) -> Parts:
    """Make a tokenizer of the words between white space, for text that is tokenised already.

    One space joins them when decoded.
    """
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer, trainers.WordLevelTrainer(
        vocab_size=vocab_size, min_frequency=min_frequency, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )


def word_punct(vocab_size: int, min_frequency: int) -> Parts:
    """Make a tokenizer of words and punctuation marks, each with the space before it; for running text.

    So decoding puts the spaces right: it gives back what was seen in training, with single spaces for runs of white
    space and for `▁`. Apostrophes stay inside a word.
    """
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNK))
    spaces = Regex(rf"[\s{SPACE}]+")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(spaces, " "), normalizers.Strip()])
    token = Regex(rf"{SPACE}?(\w+(['’]\w+)*|[^\w{SPACE}])")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(split=False), pre_tokenizers.Split(token, behavior="isolated")]
    )
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer, trainers.WordLevelTrainer(
        vocab_size=vocab_size, min_frequency=min_frequency, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )


def character(vocab_size: int, min_frequency: int) -> Parts:
    """Make a tokenizer of characters, white space included.

    It gives back exactly what was seen in training, however rare.
    """
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer, trainers.WordLevelTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )


KINDS: dict[str, Callable[[int, int], Parts]] = {
    "bpe": byte_level_bpe,
    "unigram": unigram,
    "wordpiece": wordpiece,
    "word": word,
    "word_punct": word_punct,
    "character": character,
}


def train(
    texts: Iterable[str],
    kind: str = "bpe",
    vocab_size: int = 8000,
    *,
    min_frequency: int = 2,
    lowercase: bool = False,
    eos_position: str = "end",
    max_length: int = 512,
    max_texts: int = 1_000_000,
    guarded: Sequence[str] = (),
) -> PreTrainedTokenizerFast:
    """Learn a vocabulary.

    Trained again on the same texts, unigram and wordpiece break ties differently (tokenizers 0.23 goes by the order of
    hash maps): ship the tokenizer, not the recipe.

    Args:
        texts: read once, and no more than `max_texts` of them: on very large corpora the trainers run out of memory.
        kind: one of `KINDS`.
        vocab_size: tokens at most, `<pad> <s> </s> <unk>` (ids 0 to 3) included.
        min_frequency: how often a merge or a word must occur to be learned; unigram and character ignore it.
        lowercase: whether case is lost.
        eos_position: where every text has its `</s>`, at the "end", or at the "start", so that a language model, which
            reads one text after another, can go on from a prompt (as GPT-2 from its <|endoftext|>); prompts are then
            padded on the left.
        max_length: the `model_max_length` that the tokenizer will state.
        guarded: patterns of special tokens that are added later, which no text can then hold; each begins with `<`.

    Returns:
        A tokenizer that takes `</s>` written in a text for what it is: text.

    Raises:
        TokenizerError: for an unknown kind, too small a vocabulary, or texts with nothing in them.
    """
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise TokenizerError(f"tokenizer.kind: {kind!r} is unknown{hint}; choose from {', '.join(KINDS)}")
    lines = _lines(itertools.islice(texts, max_texts))
    if (first := next(lines, None)) is None:
        raise TokenizerError("there is no text to train a tokenizer on: no texts were given, or all of them are empty")
    tokenizer, trainer = KINDS[kind](vocab_size, min_frequency)
    if lowercase:
        steps = [normalizers.Lowercase(), *([tokenizer.normalizer] if tokenizer.normalizer else [])]
        tokenizer.normalizer = normalizers.Sequence(steps)
    _guard(tokenizer, SPECIAL_TOKENS, guarded)
    too_small = f"tokenizer.vocab_size: {vocab_size} is too small for the characters of these texts in kind {kind}"
    try:
        tokenizer.train_from_iterator(itertools.chain([first], lines), trainer)
    except Exception as error:
        if "vocabulary is not large enough" in str(error):  # of unigram; a plain Exception
            raise TokenizerError(f"{too_small}; give more") from error
        raise
    if (needed := tokenizer.get_vocab_size()) > vocab_size:
        raise TokenizerError(f"{too_small}; give at least {needed}")
    if needed <= len(SPECIAL_TOKENS):
        raise TokenizerError(
            f"the {kind} vocabulary came out empty: tokenizer.vocab_size ({vocab_size}) must exceed "
            f"{len(SPECIAL_TOKENS)}, and something must occur {min_frequency} times (min_frequency)"
        )
    return _finish(
        tokenizer, dict(zip(("pad", "bos", "eos", "unk"), SPECIAL_TOKENS, strict=True)), max_length, eos_position
    )


def _lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        # A newline left on fills the vocabulary with tokens that end in one.
        if (stripped := text.rstrip("\r\n")).strip():
            yield stripped


def _guard(tokenizer: Tokenizer, special_tokens: Iterable[str], patterns: Iterable[str] = ()) -> None:
    """Keep special tokens out of reach of texts: one that is written out is split behind its first character.

    `split_special_tokens` is not enough: a model whose vocabulary holds `</s>` finds it there like any other word.
    """
    rests = defaultdict(list)
    for token in special_tokens:
        rests[token[0]].append(re.escape(token[1:]))
    for expression in patterns:
        rests[expression[0]].append(expression[1:])
    pattern = "|".join(f"{re.escape(first)}(?={'|'.join(rest)})" for first, rest in rests.items())
    guard = pre_tokenizers.Split(Regex(pattern), behavior="merged_with_previous")
    before = tokenizer.pre_tokenizer
    tokenizer.pre_tokenizer = guard if before is None else pre_tokenizers.Sequence([before, guard])


def import_sentencepiece(path: str | Path, *, max_length: int = 512) -> PreTrainedTokenizerFast:
    """Read a SentencePiece model (unigram or BPE), keeping its ids and its segmentation.

    A `<pad>`, `<s>` or `</s>` that the model lacks is added behind its last piece. The segmentation is
    `sentencepiece`'s own but for exact ties between unigram paths (`....` as `...` `.` or `.` `...`: it adds in single
    precision), pieces that would run into a special token written out in a text, a compatibility character (such as a
    ligature) with an accent upon it, and charsmaps made by hand whose rules begin with one another.

    Raises:
        TokenizerError: for a file that is not a SentencePiece model, or one that cannot be imported exactly.
    """
    proto = _read_sentencepiece(path)
    is_unigram = proto.trainer_spec.model_type == SENTENCEPIECE_UNIGRAM
    tokenizer = Tokenizer(_sentencepiece_unigram(proto) if is_unigram else _sentencepiece_bpe(proto))
    tokenizer.normalizer = _sentencepiece_normalizer(proto.normalizer_spec)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        + ([decoders.Strip(" ", 1, 0)] if proto.normalizer_spec.add_dummy_prefix else [])
    )
    symbols = [piece.piece for piece in proto.pieces if piece.type == piece.USER_DEFINED]
    for symbol in symbols:
        if not tokenizer.normalizer.normalize_str(symbol).endswith(symbol):
            raise TokenizerError(f"{path}: its normalisation changes its user-defined symbol {symbol!r}: not supported")
    if symbols and not is_unigram:
        # SentencePiece takes these out, the longest first, before it merges anything; unigram only scores them high.
        pattern = "|".join(re.escape(symbol) for symbol in sorted(symbols, key=len, reverse=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    reserved = [piece.piece for piece in proto.pieces if piece.type in (piece.UNKNOWN, piece.CONTROL, piece.BYTE)]
    _guard(tokenizer, reserved)
    tokenizer.add_special_tokens([piece.piece for piece in proto.pieces if piece.type == piece.CONTROL])
    spec = proto.trainer_spec
    special = {
        name: proto.pieces[index].piece if index >= 0 else default
        for name, index, default in (
            ("pad", spec.pad_id, PAD),
            ("bos", spec.bos_id, BOS),
            ("eos", spec.eos_id, EOS),
            ("unk", spec.unk_id, UNK),
        )
    }
    return _finish(tokenizer, special, max_length)


def _read_sentencepiece(path: str | Path) -> Any:
    """Read ModelProto of https://github.com/google/sentencepiece/blob/v0.2.0/src/sentencepiece_model.proto."""
    try:
        proto = SentencePieceExtractor(str(path)).proto
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read: {error}") from error
    except ImportError:
        raise
    except Exception as error:  # protobuf's DecodeError, whose module differs between its implementations
        raise TokenizerError(f"{path}: this is not a SentencePiece model ({error})") from error
    if not proto.pieces:
        raise TokenizerError(f"{path}: this is not a SentencePiece model: it holds no pieces")
    if proto.trainer_spec.model_type not in (SENTENCEPIECE_UNIGRAM, SENTENCEPIECE_BPE):
        raise TokenizerError(f"{path}: only SentencePiece models of type unigram or bpe can be imported")
    if proto.trainer_spec.treat_whitespace_as_suffix or any(piece.type == piece.UNUSED for piece in proto.pieces):
        raise TokenizerError(f"{path}: treat_whitespace_as_suffix and unused pieces cannot be imported")
    return proto


def _sentencepiece_unigram(proto: Any) -> models.Unigram:
    # SentencePiece gives user-defined symbols `length * max_score - 0.1`, and its max_score never falls below FLT_MIN:
    # https://github.com/google/sentencepiece/blob/v0.2.0/src/unigram_model.cc
    pieces = [(piece.piece, -0.1 if piece.type == piece.USER_DEFINED else piece.score) for piece in proto.pieces]
    return models.Unigram(pieces, unk_id=proto.trainer_spec.unk_id, byte_fallback=proto.trainer_spec.byte_fallback)


def _sentencepiece_bpe(proto: Any) -> models.BPE:
    ids = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    # SentencePiece merges the pair that makes the piece of the best score; a merge's rank is its place in this list.
    return models.BPE(
        ids,
        generate_merges(ids, {piece.piece: piece.score for piece in proto.pieces}),
        unk_token=proto.trainer_spec.unk_piece,
        fuse_unk=True,
        byte_fallback=proto.trainer_spec.byte_fallback,
        ignore_merges=any(piece.type == piece.USER_DEFINED for piece in proto.pieces),  # these are whole already
    )


def _sentencepiece_normalizer(spec: Any) -> normalizers.Normalizer:
    """Do what https://github.com/google/sentencepiece/blob/v0.2.0/src/normalizer.cc does, in its order."""
    steps: list[normalizers.Normalizer] = []
    if "nfkc" in spec.name:
        # `Precompiled` applies a rule's shortest beginning to a whole cluster of a letter and its accents, and loses
        # accents: https://github.com/huggingface/spm_precompiled/blob/master/src/lib.rs. So nothing must be left to
        # compose, nor to lower, when it comes.
        steps.append(normalizers.NFKC())
        if spec.name.startswith("nmt"):
            # These rules leave the full-width tilde alone: a noncharacter, which no text should contain, stands in for
            # it meanwhile. To them "\r" and "\n" are spaces alike, but "\r\n" is one cluster.
            steps.insert(0, normalizers.Replace("\uff5e", "\ufdd0"))
            steps += [normalizers.Replace("\ufdd0", "\uff5e"), normalizers.Replace("\r", "\n")]
        if spec.name.endswith("_cf"):
            steps.append(normalizers.Lowercase())
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        # Only spaces, and not `^` and `$`: a newline is text like any other.
        steps += [
            normalizers.Replace(Regex(r"\A +"), ""),
            normalizers.Replace(Regex(" {2,}"), " "),
            normalizers.Replace(Regex(rf"[ {SPACE}]+\z"), ""),
        ]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(" "))
    if spec.escape_whitespaces:
        steps.append(normalizers.Replace(" ", SPACE))
    return normalizers.Sequence(steps)


def _finish(
    tokenizer: Tokenizer, special: dict[str, str], max_length: int, eos_position: str = "end"
) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special.values()])
    eos = special["eos"]
    # No <s>: the model's shift puts it before the target, and only there.
    single, pair = {"end": (f"$A {eos}", f"$A {eos} $B {eos}"), "start": (f"{eos} $A", f"{eos} $A {eos} $B")}[
        eos_position
    ]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(eos, tokenizer.token_to_id(eos))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{f"{name}_token": token for name, token in special.items()},
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="right" if eos_position == "end" else "left",  # a prompt is gone on from at its end
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
    )
