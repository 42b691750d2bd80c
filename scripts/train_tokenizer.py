"""Trains a tokenizer, or imports a SentencePiece model, into a folder that AutoTokenizer loads."""

import argparse
import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run from a clone, whether installed or not

from pipeline.config import DataConfig
from pipeline.data.splits import open_split
from pipeline.errors import ConfigError, DataError
from tokenizer.checks import TokenizerError, check
from tokenizer.training import KINDS, import_sentencepiece, train


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="folder to write")
    origin = parser.add_mutually_exclusive_group(required=True)
    origin.add_argument("--data", help="Hub id, local folder or file, or generated set, as data.path in a config")
    origin.add_argument("--files", nargs="+", type=Path, help="plain text files, one text a line")
    origin.add_argument("--sentencepiece", type=Path, help="a SentencePiece .model file to import")
    parser.add_argument("--split", default="train", help="of --data (default: train)")
    parser.add_argument("--columns", nargs="+", default=["source", "target"], help="of --data (default: source target)")
    parser.add_argument("--kind", default="bpe", choices=list(KINDS))
    parser.add_argument("--vocab-size", type=int, default=8000)
    parser.add_argument("--max-length", type=int, default=512, help="model_max_length, in tokens")
    parser.add_argument("--max-texts", type=int, default=1_000_000, help="texts to read at most")
    arguments = parser.parse_args()
    try:
        if arguments.sentencepiece:
            made = import_sentencepiece(arguments.sentencepiece, max_length=arguments.max_length)
            sample: list[str] = []
        else:
            texts = lines(arguments.files) if arguments.files else column_texts(arguments)
            sample = list(itertools.islice(texts, 100))
            made = train(
                itertools.chain(sample, texts),
                arguments.kind,
                arguments.vocab_size,
                max_length=arguments.max_length,
                max_texts=arguments.max_texts,
            )
        check(made, sample)
    except (ConfigError, DataError, TokenizerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    made.save_pretrained(arguments.output)
    print(f"{arguments.output}: {len(made)} tokens")
    return 0


def lines(files: list[Path]):
    for file in files:
        with file.open(encoding="utf-8", newline="\n") as stream:
            yield from stream


def column_texts(arguments: argparse.Namespace):
    data = DataConfig(path=arguments.data, streaming=True)
    for row in open_split(data, arguments.split, {name: name for name in arguments.columns}):
        yield from (text for text in row.values() if isinstance(text, str))


if __name__ == "__main__":
    sys.exit(main())
