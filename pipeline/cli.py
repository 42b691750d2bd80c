"""The command line: teacher-forcing train | tokenizer | generate | score | compare | trace | export | publish

Also `python -m pipeline.cli ...` and, on several GPUs, `accelerate launch -m pipeline.cli train CONFIG`.

Modules that take seconds to import are imported by the subcommand that needs them, so `--help` and a mistake in the
command line are answered at once. This is the only place that prints errors.
"""

import argparse
import atexit
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import pipeline
from pipeline.commands import compare, export, generate, publish, score, tokenizer, trace, train
from pipeline.commands.arguments import Parser
from pipeline.commands.texts import check_text
from pipeline.errors import (
    BROKEN_PIPE,
    INTERRUPTED,
    RunError,
    Stopped,
    TeacherForcingError,
    explain_path,
    one_line,
)


class Command(Protocol):
    """What a module of `pipeline/commands/` offers."""

    def add_arguments(self, parser: Parser) -> None:
        """Describe the command line."""

    def run(self, arguments: argparse.Namespace) -> int | None:
        """Do the work, and return an exit code, or None for 0. The docstring is what `--help` says."""


COMMANDS: dict[str, Command] = {
    "train": train,
    "tokenizer": tokenizer,
    "generate": generate,
    "score": score,
    "compare": compare,
    "trace": trace,
    "export": export,
    "publish": publish,
}
SHARED = ("train", "generate", "score")  # what several processes can do together


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code.

    Args:
        argv: the words behind `teacher-forcing`; those of this process by default.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    parser, subcommands = make_parsers()
    if not words or words[0] not in subcommands:
        parser.parse_args(words)  # prints the help, or what is wrong, and exits
    # Not through `parser`, which would take no options between the positional arguments of a subcommand.
    arguments = subcommands[words[0]].parse_intermixed_args(words[1:])
    code = print_errors(arguments.run, arguments)
    if "LOCAL_RANK" in os.environ and words[0] in SHARED:
        end_one_of_many(code)
    return code


def end_one_of_many(code: int) -> None:
    """End one of several processes here, without the destructors of its libraries.

    Seen now and then with torch 2.13: threads of gloo that outlive the interpreter abort the process
    ("terminate called without an active exception"), and the launcher then kills the others. Destroying the process
    group before does not help, as wrapped models hold it, and collecting those can wait for a thread for ever.
    """
    atexit._run_exitfuncs()  # such as those of loggers
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def print_errors(run: Callable[[argparse.Namespace], int | None], arguments: argparse.Namespace) -> int:
    """Call `run(arguments)` and return its exit code, or 0; print an error that is the user's to fix as one line.

    Any other exception is a bug and passes through, with its traceback.
    """
    continues = "; the same command goes on from the newest checkpoint, where there is one" if run is train.run else ""
    try:
        _check_paths(arguments)
        code = run(arguments)
        print(end="", flush=True)
    except Stopped as stopped:
        from accelerate import PartialState

        if PartialState().is_main_process:
            print(f"\n{stopped}", file=sys.stderr)
        return stopped.exit_code
    except TeacherForcingError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"\ninterrupted{continues}", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        if not _output_is_lost():
            raise
        if isinstance(error, BrokenPipeError) and not continues:  # `| head` has seen enough
            return BROKEN_PIPE
        remedy = continues or "; write it elsewhere"
        print(f"error: standard output: {one_line(error.strerror)}{remedy}", file=sys.stderr)
        return BROKEN_PIPE if isinstance(error, BrokenPipeError) else RunError.exit_code
    return code or 0


def _check_paths(arguments: argparse.Namespace) -> None:
    """Refuse what the system refuses to look up, such as a loop of links, and names that cannot be printed."""
    for name, value in vars(arguments).items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Path) or (name == "checkpoint" and item):
                check_text(str(item), name)
                with explain_path(str(item)), suppress(FileNotFoundError, NotADirectoryError):
                    os.stat(item)


def _output_is_lost() -> bool:
    """Tell whether nobody reads standard output any more, or it is a full disk; then nothing more is written there.

    https://docs.python.org/3/library/signal.html#note-on-sigpipe
    """
    try:
        print(flush=True)  # fails again
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python flushes once more at its end
        return True
    return False


def make_parsers() -> tuple[argparse.ArgumentParser, dict[str, Parser]]:
    """Make the parser of the command and those of its subcommands, by name."""
    parser = argparse.ArgumentParser(
        prog="teacher-forcing",
        description="Train an encoder-decoder model, classifier, language model or forecaster, and use it.",
    )
    parser.add_argument("--version", action="version", version=f"teacher-forcing {pipeline.__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    for name, command in COMMANDS.items():
        says = command.run.__doc__
        subparser = subparsers.add_parser(
            name, help=says, description=says, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser, dict(subparsers.choices)


if __name__ == "__main__":
    sys.exit(main())
