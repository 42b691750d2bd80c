"""The words of a command line: a parser, the types of arguments, and the options of more than one command."""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path


class Parser(argparse.ArgumentParser):
    """A parser whose epilog is made when somebody asks for help, as making it imports much."""

    make_epilog: Callable[[], str] | None = None

    def format_help(self) -> str:
        if self.make_epilog is not None:
            self.epilog = self.make_epilog()
        return super().format_help()


def add_json(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON document, and all else on standard error")


def add_engine(parser: Parser) -> None:
    parser.add_argument(
        "--engine",
        type=name,
        default="torch",
        metavar="NAME",
        help="run the export that lies beside the checkpoint: ctranslate2 or onnx (default: torch, the model itself)",
    )


def add_dtype(parser: Parser) -> None:
    parser.add_argument(
        "--dtype", type=name, help="of the torch engine: float32, bf16 (bfloat16) or fp16 (default: as stored)"
    )


def add_batch_size(parser: Parser, things: str) -> None:
    parser.add_argument(
        "--batch-size",
        type=positive,
        metavar="N",
        help=f"{things} at a time (default: as many as their lengths and the memory allow)",
    )


def add_languages(parser: Parser) -> None:
    parser.add_argument(
        "--target-lang",
        type=name,
        metavar="CODE",
        help="language to translate into, where the model knows several: de, fr_XX, as its card says",
    )
    parser.add_argument("--source-lang", type=name, metavar="CODE", help="language of the texts, where it is told that")


def add_mbr(parser: Parser) -> None:
    parser.add_argument(
        "--mbr",
        type=positive,
        metavar="N",
        help="minimum Bayes risk: draw N samples of each answer, and take the one most like all of them by chrF",
    )


def shortest_names(paths: Sequence[Path]) -> list[str]:
    """Return the last part of some paths in which all differ, or else as many last parts as it takes."""
    parts = [Path(os.path.abspath(path)).parts[::-1] for path in paths]
    for place in range(min(map(len, parts), default=0)):
        names = [names[place] for names in parts]
        if len({*names}) == len(names):
            return names
    for count in range(1, max(map(len, parts), default=0)):
        names = [str(Path(*names[:count][::-1])) for names in parts]
        if len({*names}) == len(names):
            return names
    return [str(path) for path in paths]


def positive(argument: str) -> int:
    """Read a number of things."""
    return _whole_number(argument, 1, 2**31)


def count_or_all(argument: str) -> int | None:
    """Read a number of things, or `all`, which has no bound."""
    if argument == "all":
        return None
    if not argument.removeprefix("-").isdecimal():
        raise argparse.ArgumentTypeError(f"{argument!r} is neither a whole number nor all")
    return positive(argument)


def seed(argument: str) -> int:
    return _whole_number(argument, 0, 2**32)  # NumPy's bound


def _whole_number(argument: str, least: int, bound: int) -> int:
    number = int(argument)
    if not least <= number < bound:
        raise argparse.ArgumentTypeError(f"{number} is not a number from {least} to {bound - 1}")
    return number


def name(argument: str) -> str:
    if not argument:
        raise argparse.ArgumentTypeError("the name is empty")
    return argument


def path(argument: str) -> Path:
    return Path(name(argument))
