"""The command line: a table of subcommands, and the only place that prints what they report and the errors.

Also `python -m pipeline.cli ...` and, on several GPUs, `accelerate launch -m pipeline.cli train CONFIG`.

Modules that take seconds to import are imported by the subcommand that needs them, so `--help` and a mistake in the
command line are answered at once.
"""

import argparse
import atexit
import itertools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pipeline
from pipeline.commands import (
    average,
    compare,
    export,
    generate,
    inspect,
    plot,
    publish,
    score,
    serve,
    tokenizer,
    trace,
    train,
)
from pipeline.commands.arguments import Parser
from pipeline.commands.report import Report
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
from pipeline.progress import is_main


class Module(Protocol):
    """What a module of `pipeline/commands/` offers."""

    def add_arguments(self, parser: Parser) -> None:
        """Describe the command line."""

    def run(self, arguments: argparse.Namespace) -> Report | None:
        """Do the work, and return what is to be printed; None where lines are printed while the work goes on.

        The docstring is what `--help` of the subcommand says.
        """


@dataclass(frozen=True)
class Command:
    """A line of the table of subcommands: what `--help` shows of it, and what does it."""

    group: str
    summary: str
    module: Module


COMMANDS = {  # in the order of use
    "tokenizer": Command("Train", "learn a vocabulary from texts, or import a SentencePiece model", tokenizer),
    "inspect": Command("Train", "look at the data of a config: lengths, duplicates, faults", inspect),
    "train": Command("Train", "train the model that a config describes, or go on with its run", train),
    "average": Command("Train", "average the weights of checkpoints into one model", average),
    "plot": Command("Train", "draw the curves of runs in one picture", plot),
    "score": Command("Judge", "score a model on a split of its data", score),
    "compare": Command("Judge", "put systems side by side: scores, significance, examples", compare),
    "trace": Command("Judge", "show a pair on its way through a model, as a page", trace),
    "generate": Command("Use", "answer texts: one line for each", generate),
    "export": Command("Use", "convert a model for another runtime, and prove that it does the same", export),
    "serve": Command("Use", "answer over HTTP, in the formats of clients that people have", serve),
    "publish": Command("Use", "put a model on the Hub", publish),
}
GOES_ON = {  # what is said behind an interrupt
    "train": "; the same command goes on from the newest checkpoint, where there is one",
    "generate": "; the same command goes on with --resume",  # where it has an output
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
    can_go_on = words[0] == "train" or getattr(arguments, "output", None) is not None
    code = print_errors(run_and_print, arguments, GOES_ON.get(words[0], "") if can_go_on else "")
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


def run_and_print(arguments: argparse.Namespace) -> None:
    """Run a subcommand, and print its report from the main process: as text, or as the only thing on standard output.

    Raises:
        TeacherForcingError: what the subcommand raises, or else the error in its report.
    """
    with redirect_stdout(sys.stderr) if arguments.json else nullcontext():
        report = arguments.run(arguments)
    if report is None:
        return
    if is_main():
        print(report.as_json() if arguments.json else report.text, flush=True)
    if report.error is not None:
        raise report.error


def print_errors(
    run: Callable[[argparse.Namespace], int | None], arguments: argparse.Namespace, continues: str = ""
) -> int:
    """Call `run(arguments)` and return its exit code, or 0; print an error that is the user's to fix as one line.

    Any other exception is a bug and passes through, with its traceback.

    Args:
        continues: what is said behind an interrupt.
    """
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
        usage="teacher-forcing COMMAND ...",
        description="Train an encoder-decoder model, classifier, language model or forecaster, and use it.",
        epilog=f"{as_table(COMMANDS)}\n\nteacher-forcing COMMAND --help has the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)  # who reads this has found it
    parser.add_argument("--version", action="version", version=f"teacher-forcing {pipeline.__version__}")
    subparsers = parser.add_subparsers(
        metavar="COMMAND", required=True, parser_class=Parser, prog="teacher-forcing", help=argparse.SUPPRESS
    )
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(
            name, description=command.module.run.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.module.add_arguments(subparser)
        subparser.set_defaults(run=command.module.run, json=False)
    return parser, dict(subparsers.choices)


def as_table(commands: Mapping[str, Command]) -> str:
    """Return a line for each command below its group."""
    width = max(map(len, commands))
    lines = []
    for group, names in itertools.groupby(commands, lambda name: commands[name].group):
        lines += [f"{group}:", *(f"  {name:<{width}}  {commands[name].summary}" for name in names)]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
