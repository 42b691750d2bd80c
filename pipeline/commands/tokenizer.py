"""teacher-forcing tokenizer: a vocabulary learned from texts, or imported."""

import itertools
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from pipeline.commands.arguments import Parser, path, positive
from pipeline.commands.process import quick_imports
from pipeline.commands.texts import decode, lines_of
from pipeline.errors import ConfigError, explain_path, nearest


def add_arguments(parser: Parser) -> None:
    parser.make_epilog = describe
    parser.add_argument("output", type=path, help="folder to write")
    origin = parser.add_mutually_exclusive_group(required=True)
    origin.add_argument("--data", help="Hub id, local folder or file, or generated set, as data.path in a config")
    origin.add_argument("--files", nargs="+", type=path, help="plain text files, one text a line")
    origin.add_argument("--sentencepiece", type=path, help="a SentencePiece .model file to import")
    parser.add_argument("--split", default="train", help="of --data (default: train)")
    parser.add_argument("--columns", nargs="+", default=["source", "target"], help="of --data (default: source target)")
    parser.add_argument("--kind", default="bpe", help="see below (default: bpe)")
    parser.add_argument("--vocab-size", type=positive, metavar="N", default=8000, help="tokens at most (default: 8000)")
    parser.add_argument(
        "--max-length", type=positive, metavar="N", default=512, help="model_max_length, in tokens (default: 512)"
    )
    parser.add_argument(
        "--max-texts", type=positive, metavar="N", default=1_000_000, help="texts to read at most (default: 1000000)"
    )


def describe() -> str:
    with quick_imports():
        from tokenizer.training import KINDS
    return f"Kinds: {', '.join(KINDS)}"


def run(arguments: Namespace) -> None:
    """Train a tokenizer, or import a SentencePiece model, into a folder that AutoTokenizer loads."""
    with quick_imports():
        from tokenizer.checks import TokenizerError, check
        from tokenizer.training import KINDS, import_sentencepiece
        from tokenizer.training import train as learn_vocabulary

    if arguments.kind not in KINDS:
        raise ConfigError(f"--kind: {arguments.kind!r} is unknown{nearest(arguments.kind, KINDS)}")
    if arguments.output.exists() and not arguments.output.is_dir():
        raise ConfigError(f"{arguments.output} is a file; name a folder to write the tokenizer into")
    if (arguments.output / "model.safetensors").exists():
        raise ConfigError(f"{arguments.output} holds a model, which needs its own tokenizer; name another folder")
    try:
        if arguments.sentencepiece:
            tokenizer = import_sentencepiece(arguments.sentencepiece, max_length=arguments.max_length)
            sample: list[str] = []
        else:
            texts = _read_files(arguments.files) if arguments.files else _read_columns(arguments)
            sample = list(itertools.islice(texts, 100))
            tokenizer = learn_vocabulary(
                itertools.chain(sample, texts),
                arguments.kind,
                arguments.vocab_size,
                max_length=arguments.max_length,
                max_texts=arguments.max_texts,
            )
        check(tokenizer, sample)
    except TokenizerError as error:
        raise ConfigError(str(error)) from error
    with explain_path(str(arguments.output)):
        tokenizer.save_pretrained(arguments.output)
    print(f"{arguments.output}: {len(tokenizer)} tokens")


def _read_files(files: list[Path]) -> Iterator[str]:
    for file in files:
        for number, line in enumerate(lines_of(file, "--files"), start=1):
            yield decode(line, str(file), number)


def _read_columns(arguments: Namespace) -> Iterator[str]:
    from pipeline.config import DataConfig, make_section
    from pipeline.data.splits import open_split

    data = make_section("data", DataConfig, path=arguments.data, streaming=True)
    for row in open_split(data, arguments.split, {name: name for name in arguments.columns}):
        yield from (row[name] for name in arguments.columns if isinstance(row[name], str))
