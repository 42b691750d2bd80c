"""The command line: teacher-forcing train | tokenizer | generate | score | trace | export | publish

Also `python -m pipeline.cli ...` and, on several GPUs, `accelerate launch -m pipeline.cli train CONFIG`.

Modules that take seconds to import are imported by the subcommand that needs them, so `--help` and a mistake in the
command line are answered at once. This is the only place that prints errors.
"""

import argparse
import atexit
import gc
import itertools
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pipeline
from pipeline.errors import (
    ConfigError,
    DataError,
    NotPublished,
    RunError,
    Stopped,
    TeacherForcingError,
    explain_path,
    nearest,
    one_line,
)
from pipeline.signals import interrupted_by_sigterm, stop_with_launcher

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pipeline.run import RunResult

TABLE_ROWS = 10
INTERRUPTED = 130  # as a shell reports a command that Ctrl-C ended
BROKEN_PIPE = 141  # and one whose reader is gone

SHARED = ("train", "generate", "score")  # what several processes can do together

EXIT_CODES = (
    (0, "finished"),
    (ConfigError.exit_code, "wrong config or data"),
    (
        RunError.exit_code,
        "the run cannot go on (disk full, out of memory, values not finite, a hung worker), or an export is not "
        "equivalent; what was saved is whole",
    ),
    (NotPublished.exit_code, "trained, scored and saved, but not published: see teacher-forcing publish"),
    (Stopped.exit_code, "stopped by SIGTERM or SIGINT, and saved: the same command goes on"),
    (INTERRUPTED, "interrupted before or after the training"),
    (BROKEN_PIPE, "nobody reads standard output any more"),
)


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
    continues = "; the same command goes on from the newest checkpoint, where there is one" if run is train else ""
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
                _check_text(str(item), name)
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


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import torch and what is built on it in less time, where they are not imported yet."""
    if "torch" in sys.modules:
        yield
        return
    # Large tensors on the CPU in large pages: a matrix whose rows are 4 kB long else needs a page for each of them.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    gc.disable()  # what imports make stays, and looking through it again and again takes time
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


# ---- the command line


class Parser(argparse.ArgumentParser):
    """A parser whose epilog is made when somebody asks for help, as making it imports much."""

    make_epilog: Callable[[], str] | None = None

    def format_help(self) -> str:
        if self.make_epilog is not None:
            self.epilog = self.make_epilog()
        return super().format_help()


def make_parsers() -> tuple[argparse.ArgumentParser, dict[str, Parser]]:
    """Make the parser of the command and those of its subcommands, by name."""
    parser = argparse.ArgumentParser(
        prog="teacher-forcing",
        description="Train an encoder-decoder model, classifier, language model or forecaster, and use it.",
    )
    parser.add_argument("--version", action="version", version=f"teacher-forcing {pipeline.__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    for add in (_add_train, _add_tokenizer, _add_generate, _add_score, _add_trace, _add_export, _add_publish):
        add(subparsers)
    return parser, dict(subparsers.choices)


def _add(subparsers: argparse._SubParsersAction, name: str, run: Callable[[argparse.Namespace], None]) -> Parser:
    parser = subparsers.add_parser(
        name, help=run.__doc__, description=run.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(run=run)
    return parser


def _add_train(subparsers: argparse._SubParsersAction) -> None:
    parser = _add(subparsers, "train", train)
    parser.make_epilog = _describe_train
    parser.add_argument("config", type=path, help="YAML file, such as configs/reversal.yaml")
    parser.add_argument("overrides", nargs="*", help="section.key=value, the value in YAML")
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="go on with other settings or data in a folder that holds a run; see below which",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="rehearse on the real rows what the run will do, and report; no training"
    )


def _describe_train() -> str:
    with quick_imports():
        from pipeline import reference
        from pipeline.training import changes
    codes = "\n".join(f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES)
    going_on = f"What may change when a run goes on:\n{changes.as_text()}"
    return f"Exit codes:\n{codes}\n\n{going_on}\n\nKeys of a config:\n\n{reference.as_text()}"


def _add_tokenizer(subparsers: argparse._SubParsersAction) -> None:
    parser = _add(subparsers, "tokenizer", train_tokenizer)
    parser.make_epilog = _describe_tokenizer
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


def _describe_tokenizer() -> str:
    with quick_imports():
        from tokenizer.training import KINDS
    return f"Kinds: {', '.join(KINDS)}"


def _add_generate(subparsers: argparse._SubParsersAction) -> None:
    parser = _add(subparsers, "generate", generate)
    parser.add_argument("checkpoint", type=name, help="folder or Hub id of a trained model")
    parser.add_argument("texts", nargs="*", help="source texts")
    parser.add_argument("--file", type=path, help="read the source texts from this file, one a line")
    parser.add_argument("--batch-size", type=positive, default=128, metavar="N", help="texts at a time (default: 128)")
    parser.add_argument("--seed", type=seed, metavar="N", help="for sampling")
    _add_engine(parser)
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="change the stored generation config, such as: --set do_sample=true top_k=10 temperature=0.6",
    )


def _add_engine(parser: Parser) -> None:
    parser.add_argument(
        "--engine",
        type=name,
        default="torch",
        metavar="NAME",
        help="run the export that lies beside the checkpoint: ctranslate2 or onnx (default: torch, the model itself)",
    )


def _add_score(subparsers: argparse._SubParsersAction) -> None:
    parser = _add(subparsers, "score", score)
    parser.add_argument("checkpoint", type=path, help="folder of a trained model, or a checkpoint-N below one")
    parser.add_argument("overrides", nargs="*", help="section.key=value, to change the config that it was trained with")
    parser.add_argument("--split", default="test", choices=["train", "validation", "test"], help="(default: test)")
    parser.add_argument("--config", type=path, help="another config than the one found beside the checkpoint")
    parser.add_argument("--batch-size", type=positive, default=32, metavar="N", help="rows at a time (default: 32)")
    _add_engine(parser)
    parser.add_argument(
        "--allow-metric-code",
        action="store_true",
        help="run metrics that are not built in: code, which the config found beside a checkpoint may name",
    )
    parser.add_argument("--predictions", type=path, help="write one JSON line a sample: source, reference, prediction")


def _add_trace(subparsers: argparse._SubParsersAction) -> None:
    parser = _add(subparsers, "trace", trace)
    parser.add_argument(
        "checkpoint", type=name, help="folder or Hub id of a trained encoder-decoder model of this project"
    )
    parser.add_argument("source", help="text that the encoder reads")
    parser.add_argument("target", help="text that the decoder should say, fed to it token by token")
    parser.add_argument(
        "--output", type=path, default=Path("trace.html"), help="the page; the picture goes beside it as .png"
    )


def _add_export(subparsers: argparse._SubParsersAction) -> None:
    parser = _add(subparsers, "export", export)
    parser.add_argument("checkpoint", type=path, help="folder of a trained model, or a checkpoint-N below one")
    parser.add_argument("--to", type=name, required=True, metavar="NAME", help="transformers, ctranslate2 or onnx")
    parser.add_argument(
        "--output", type=path, metavar="FOLDER", help="to write (default: exports/NAME in the checkpoint)"
    )
    parser.add_argument("--quantization", metavar="Q", help="of the weights: int8, int8_bfloat16 or float16")
    parser.add_argument(
        "--rows", type=path, metavar="FILE", help="rows to compare on (default: the validation split of the training)"
    )
    parser.add_argument(
        "--num-rows", type=count_or_all, default=1000, metavar="N", help="rows to compare, or all (default: 1000)"
    )


def _add_publish(subparsers: argparse._SubParsersAction) -> None:
    parser = _add(subparsers, "publish", publish)
    parser.add_argument("checkpoint", type=path, help="folder of a trained model, or a checkpoint-N below one")
    parser.add_argument("name", type=name, help="owner/name of the repository, which is created if it does not exist")
    parser.add_argument(
        "--public", action="store_true", help="everybody sees it, where it is created (default: only its owner does)"
    )
    parser.add_argument(
        "--as",
        dest="form",
        choices=["own", "transformers"],
        default="own",
        help="own: this project's class, with its code (default); transformers: the same model as a stock class, which "
        "loads without trust_remote_code in transformers 4 and 5",
    )
    parser.add_argument(
        "--with-pipeline",
        action="store_true",
        help="add the code of pipeline('translation') for transformers 5 to the form transformers",
    )


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


# ---- the subcommands


def train(arguments: argparse.Namespace) -> None:
    """Train the model that a config describes, or go on with its run."""
    stop_with_launcher()
    with quick_imports():
        from accelerate import PartialState
        from transformers.utils import logging as transformers_logging

        from pipeline import run
        from pipeline.rehearsal import raise_errors
        from pipeline.tasks.config_loading import load_config

    logging.basicConfig(format="%(message)s")
    logging.getLogger("pipeline").setLevel(logging.INFO if _is_main() else logging.ERROR)
    transformers_logging.disable_progress_bar()  # of loading and saving; the training's own stays
    config = load_config(arguments.config, arguments.overrides)
    result = run.train(config, accept_changes=arguments.accept_changes, dry_run=arguments.dry_run)
    if PartialState().is_main_process and result.findings:
        _print_findings(result)
    elif PartialState().is_main_process:
        _print_result(result)
    raise_errors(result.findings)


def _print_findings(result: "RunResult") -> None:
    """Print what a rehearsal found, one line each."""
    print(f"\nRehearsal of the run in {result.output_dir}")
    for finding in result.findings:
        print(f"  {finding.status:<7}  {finding.check:<15}  {finding.text}")


def _print_result(result: "RunResult") -> None:
    """Print predictions marked right or wrong, the scores, and where everything lies."""
    if result.was_finished:
        print(f"\nThis run is finished already; remove {result.output_dir} to train again.")
    predictions = [] if result.last is None else result.last.predictions
    if any(prediction.prediction is not None for prediction in predictions):
        print("\nPredictions")
        for prediction in predictions[:TABLE_ROWS]:
            mark = "right" if prediction.is_right else "wrong"
            print(f"  {mark}  {prediction.source}  ->  {prediction.prediction}")
            if not prediction.is_right:
                print(f"         reference: {prediction.reference}")
    for split, scores in result.scores.items():
        print("\nLeft out of the training" if split == "training" else f"\nScores on {split}")
        for name, value in scores.items():
            print(f"  {name:<22} {f'{value:.4f}' if isinstance(value, float) else value}")
    print("\nWhere things lie")
    for name, meaning in (
        ("", "model, tokenizer, generation config, card (README.md); checkpoints below"),
        ("training_curves.png", "loss and accuracy, training and validation"),
        ("runs", "TensorBoard events: tensorboard --logdir"),
        ("metrics.json", "the scores above"),
    ):
        print(f"  {result.output_dir / name}  {meaning}")


def train_tokenizer(arguments: argparse.Namespace) -> None:
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
        for number, line in enumerate(_lines_of(file, "--files"), start=1):
            yield _decode(line, str(file), number)


def _read_columns(arguments: argparse.Namespace) -> Iterator[str]:
    from pipeline.config import DataConfig, make_section
    from pipeline.data.splits import open_split

    data = make_section("data", DataConfig, path=arguments.data, streaming=True)
    for row in open_split(data, arguments.split, {name: name for name in arguments.columns}):
        yield from (row[name] for name in arguments.columns if isinstance(row[name], str))


def generate(arguments: argparse.Namespace) -> None:
    """Generate one line for each text: from the command line, --file or standard input."""
    if arguments.texts and arguments.file:
        raise ConfigError("give texts or --file, not both")
    for number, text in enumerate(arguments.texts, start=1):
        _check_text(text, f"text {number}")
    with quick_imports():
        import torch
        from transformers.utils import logging as transformers_logging

        from pipeline.inference.engines.base import load_engine
        from pipeline.inference.generation import generate as generate_texts

    transformers_logging.disable_progress_bar()
    model, task = load_engine(arguments.engine, arguments.checkpoint)
    _set_generation(arguments, model)
    if not (arguments.texts or arguments.file) and os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError("standard input cannot be shared by several processes; give texts or --file")
    texts = arguments.texts or _read_lines(arguments.file)
    if arguments.seed is not None:
        torch.manual_seed(arguments.seed + int(os.environ.get("RANK", "0")))
    try:
        answers = generate_texts(model, task, texts, batch_size=arguments.batch_size)
    except (ValueError, TypeError) as error:
        if not arguments.set:
            raise
        raise ConfigError(f"--set: {error}") from error  # some values are looked at when they are used, such as top_k
    for text in answers if _is_main() else ():
        print(" ".join(text.splitlines()))


def _set_generation(arguments: argparse.Namespace, model: "PreTrainedModel") -> None:
    """Change the model's generation config by `--set`, and check the whole of it."""
    from pipeline.config import check_generation
    from pipeline.setup.generation_setup import changed_generation
    from pipeline.source import parse_overrides
    from pipeline.tasks.trained_model import check_token_ids

    if not model.can_generate():
        if arguments.set:
            raise ConfigError("--set: this model generates no text; there is nothing to set")
        return
    settings = check_generation(parse_overrides(arguments.set), lambda _: "--set: ")
    check_token_ids(settings, model.config)
    place = "--set" if arguments.set else f"{arguments.checkpoint}: generation_config.json"
    model.generation_config = changed_generation(model.generation_config, settings, place)


def _read_lines(file: Path | None) -> list[str]:
    if file is None and sys.stdin.isatty():
        print("one source text a line; end with Ctrl-D", file=sys.stderr)
    name = "standard input" if file is None else str(file)
    lines = _lines_of(file, "--file")
    # Only newlines end a line, so that there is one answer for each line that other tools count.
    texts = [_decode(line, name, number) for number, line in enumerate(lines, start=1)]
    return [text.removesuffix("\n").removesuffix("\r") for text in texts]


def score(arguments: argparse.Namespace) -> None:
    """Score a checkpoint on a split, and print the scores as JSON."""
    with quick_imports():
        from transformers.utils import logging as transformers_logging

        from pipeline.inference.engines.base import load_engine
        from pipeline.inference.evaluation import evaluate_features
        from pipeline.inference.metrics import load_metrics, refuse_metric_code
        from pipeline.tasks.config_loading import load_config
        from pipeline.tasks.encoding import encode_split
        from pipeline.tasks.registry import get_task
        from pipeline.training.checkpoints import find_config

    transformers_logging.disable_progress_bar()
    config = load_config(arguments.config or find_config(arguments.checkpoint), arguments.overrides)
    split = getattr(config.data, arguments.split)
    if split is None:
        raise ConfigError(f"data.{arguments.split} is not set; give it as data.{arguments.split}=...")
    if not arguments.allow_metric_code:
        refuse_metric_code(config.evaluation.metrics)
    model, task = load_engine(arguments.engine, arguments.checkpoint)
    if not isinstance(task, get_task(config.task)):
        raise ConfigError(f"task: {arguments.checkpoint} is not a model for {config.task}")
    metrics = load_metrics(config.evaluation)
    features = encode_split(config, task, split)
    with _open_predictions(arguments.predictions if _is_main() else None) as stream:
        result = evaluate_features(
            model,
            task,
            features,
            batch_size=arguments.batch_size,
            generation=getattr(model, "generation_config", None),
            metrics=metrics,
        )
        if stream is not None:
            with explain_path(f"--predictions {arguments.predictions}"), stream:
                for prediction in result.predictions:
                    print(json.dumps(vars(prediction), ensure_ascii=False), file=stream)
    if not _is_main():
        return
    if missing := sorted(task.scores.keys() - result.scores.keys()):
        print(f"--engine {arguments.engine} does not give {', '.join(missing)}", file=sys.stderr)
    print(json.dumps(result.scores, indent=2))


def _is_main() -> bool:
    """Tell whether this is the process that prints, where a launcher started several."""
    return os.environ.get("RANK", "0") == "0"


def _open_predictions(path: Path | None) -> AbstractContextManager[IO[str] | None]:
    """Open the file before the scoring, so that a wrong path costs no time."""
    if path is None:
        return nullcontext()
    with explain_path(f"--predictions {path}"):
        return path.open("w", encoding="utf-8")


def trace(arguments: argparse.Namespace) -> None:
    """Show a pair on its way through a model, as a page and a picture."""
    page = arguments.output
    if page.is_dir():
        raise ConfigError(f"--output {page} is a folder; name a page, such as trace.html")
    picture = page.with_suffix(".png")
    if page == picture:
        raise ConfigError(f"--output {page}: the picture takes this name; name a page, such as trace.html")
    _check_text(arguments.source, "source")
    _check_text(arguments.target, "target")
    with quick_imports():
        from transformers.utils import logging as transformers_logging

        from pipeline.inference.attention import trace as trace_pair
        from pipeline.pages.trace import write_page, write_picture
        from pipeline.tasks.trained_model import load_trained

    transformers_logging.disable_progress_bar()
    model, task = load_trained(arguments.checkpoint)
    result = trace_pair(model, task, arguments.source, arguments.target)
    with explain_path(f"--output {page}"):
        write_page(result, page)
        write_picture(result, picture)
    print(f"sum of {len(result.steps)} step losses   {result.summed_loss:.6f}")
    print(f"parallel loss x targets   {result.parallel_summed_loss:.6f}")
    print(f"the model by itself       {result.generated_text}")
    print(f"{page}\n{picture}")


def export(arguments: argparse.Namespace) -> None:
    """Convert a trained model for another runtime, once it is proven on real rows to do the same there."""
    with quick_imports():
        from transformers.utils import logging as transformers_logging

        from pipeline.exporting.export import export as export_model

    logging.basicConfig(format="%(message)s")
    logging.getLogger("pipeline").setLevel(logging.INFO)
    transformers_logging.disable_progress_bar()
    with interrupted_by_sigterm():
        folder = export_model(
            arguments.checkpoint,
            arguments.to,
            arguments.output,
            quantization=arguments.quantization,
            rows=arguments.rows,
            num_rows=arguments.num_rows,
        )
    print(folder)


def publish(arguments: argparse.Namespace) -> None:
    """Publish a trained model, or a checkpoint of a run, on the Hub."""
    if not arguments.checkpoint.is_dir():
        raise ConfigError(f"{arguments.checkpoint}: no such folder")
    with quick_imports():
        from pipeline.publishing import hub

    hub.publish(
        arguments.checkpoint,
        arguments.name,
        private=not arguments.public,
        form=arguments.form,
        with_pipeline=arguments.with_pipeline,
    )
    print(f"{arguments.checkpoint} is published as {arguments.name}")


# ---- files


def _lines_of(file: Path | None, option: str) -> Iterator[bytes]:
    """Yield the lines of a file that an option names, or of standard input."""
    from pipeline.data.lines import bounded_lines

    if file is None:
        yield from bounded_lines(sys.stdin.buffer, "standard input")
        return
    with explain_path(f"{option} {file}"), file.open("rb") as stream:
        yield from bounded_lines(stream, str(file))


def _check_text(text: str, name: str) -> None:
    """Refuse an argument that is invalid UTF-8; Python hands such bytes over as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{name}: invalid UTF-8 in {text!r}") from error


def _decode(content: bytes, place: str, first_line: int = 1) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first_line + content.count(b"\n", 0, error.start)
        raise DataError(f"{place}:{line}: invalid UTF-8; fix this line, or convert all of the text to UTF-8") from error


if __name__ == "__main__":
    sys.exit(main())
