"""teacher-forcing generate: what a model answers to texts, to files and to whole corpora."""

import math
import os
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.commands.arguments import (
    Parser,
    add_batch_size,
    add_dtype,
    add_engine,
    add_languages,
    add_mbr,
    name,
    path,
    positive,
    seed,
)
from pipeline.commands.process import join_processes, quick_imports, show_logs
from pipeline.commands.texts import check_text
from pipeline.errors import ConfigError
from pipeline.progress import is_main, progress_bar

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pipeline.data.corpus import Corpus, Text
    from pipeline.inference.corpus import Answer, AnswerSettings, Summary

FORMATS = ("text", "jsonl", "parquet")
STDIN = Path("-")
BY_SUFFIX = {".jsonl": "jsonl", ".parquet": "parquet"}  # else text
MISLEADING = (".csv", ".tsv", ".json", ".ndjson", ".arrow", ".gz", ".bz2", ".xz", ".zst")  # of files of text


def add_arguments(parser: Parser) -> None:
    parser.add_argument("checkpoint", type=name, help="folder or Hub id of a trained model")
    texts = parser.add_argument_group("texts, from standard input where nothing else is named")
    texts.add_argument("texts", nargs="*", help="source texts")
    texts.add_argument(
        "--file", type=path, help="one text a line, or a table: .jsonl, .csv, .tsv, .parquet; - for standard input"
    )
    texts.add_argument("--data", type=name, help="Hub id, local folder or file, or generated set, as data.path")
    texts.add_argument("--split", type=name, help="of --data, as data.train (default: train)")
    texts.add_argument("--subset", type=name, help="of --data on the Hub that has several")
    texts.add_argument("--revision", type=name, help="branch, tag or commit of --data on the Hub")
    texts.add_argument("--column", type=name, help="of a table; dots reach into nested columns (default: source)")
    texts.add_argument(
        "--overlong",
        choices=["split", "refuse"],
        default="split",
        help="a text that is longer than those of the training is answered sentence by sentence, or is a bad row "
        "(default: split)",
    )
    texts.add_argument(
        "--on-bad-row",
        choices=["error", "skip"],
        default="error",
        help="a text that is null, not readable or too long ends the command, or has an empty answer (default: error)",
    )
    answers = parser.add_argument_group("answers")
    answers.add_argument("--output", type=path, metavar="FILE", help="write them there, part by part")
    answers.add_argument("--resume", action="store_true", help="go on with an --output that was interrupted")
    answers.add_argument(
        "--format", choices=FORMATS, help="(default: that of the suffix of --output, .jsonl or .parquet, else text)"
    )
    answers.add_argument(
        "--n-best", type=positive, default=1, metavar="N", help="the N best of each text; with tabs between in a text"
    )
    answers.add_argument("--scores", action="store_true", help="the log-probability of each answer")
    answers.add_argument("--token-probabilities", action="store_true", help="the tokens, and how probable each was")
    answers.add_argument("--alignments", action="store_true", help="the source token that each token attends to most")
    answers.add_argument("--push-to-hub", type=name, metavar="OWNER/NAME", help="publish --output as a data set")
    answers.add_argument(
        "--public", action="store_true", help="everybody sees it, where it is created (default: only its owner does)"
    )
    add_batch_size(parser, "texts")
    add_mbr(parser)
    parser.add_argument(
        "--seed",
        type=seed,
        metavar="N",
        help="for sampling: equal answers for any --batch-size; 0 for --mbr if left out",
    )
    add_languages(parser)
    add_engine(parser)
    add_dtype(parser)
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="change the stored generation config, such as: --set do_sample=true top_k=10 temperature=0.6",
    )


def run(arguments: Namespace) -> None:
    """Answer each text: from the command line, a file, a data set or standard input."""
    _check_texts(arguments)
    _check_answers(arguments)
    with quick_imports():
        from pipeline.inference.engines.base import load_engine
        from pipeline.training.ranks import lost_peers_explained

    show_logs()
    state = join_processes()
    corpus = _open_corpus(arguments)
    if arguments.push_to_hub and is_main():
        from pipeline.publishing.corpora import prepare

        prepare(arguments.push_to_hub, private=not arguments.public)
    model, task = load_engine(arguments.engine, arguments.checkpoint, arguments.dtype)
    _set_generation(arguments, model)
    settings = _settings(arguments, task)
    work = _Work(model, task, settings, corpus.count)
    with lost_peers_explained(), _values_explained(arguments), work.bar:
        if arguments.output is None:
            summary = _print_answers(corpus, work, _format(arguments), state)
        else:
            summary = _write_answers(corpus, work, arguments, state)
    if state.is_main_process and (arguments.output is not None or summary.has_remarks):
        print(summary, file=sys.stderr)


def _check_texts(arguments: Namespace) -> None:
    """Refuse options that do not go together, before anything is imported."""
    sources = {"texts": arguments.texts, "--file": arguments.file, "--data": arguments.data}
    named = [option for option, value in sources.items() if value]
    if len(named) > 1:
        raise ConfigError(f"give {' or '.join(named)}, not {'both' if len(named) == 2 else 'all'}")
    for number, text in enumerate(arguments.texts, start=1):
        check_text(text, f"text {number}")
    for option in ("split", "subset", "revision"):
        if getattr(arguments, option) and not arguments.data:
            raise ConfigError(f"--{option} is of a data set: name one by --data")
    if named in ([], ["--file"]) and arguments.file in (None, STDIN) and os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError("standard input cannot be shared by several processes; give texts, --file or --data")


def _check_answers(arguments: Namespace) -> None:
    for option in ("resume", "push_to_hub"):
        if getattr(arguments, option) and arguments.output is None:
            raise ConfigError(f"--{option.replace('_', '-')} needs --output FILE")
    if arguments.output is not None and arguments.output.is_dir():
        raise ConfigError(f"--output {arguments.output} is a folder; name a file in it")
    if arguments.output is not None and arguments.format is None and arguments.output.suffix in MISLEADING:
        raise ConfigError(
            f"--output {arguments.output}: answers are not written as {arguments.output.suffix}; end the name in "
            ".jsonl, .parquet or .txt, or choose --format"
        )
    if arguments.public and not arguments.push_to_hub:
        raise ConfigError("--public is of --push-to-hub OWNER/NAME")
    format = _format(arguments)
    if format == "parquet" and arguments.output is None:
        raise ConfigError("--format parquet needs --output FILE")
    if format == "text" and (arguments.token_probabilities or arguments.alignments):
        raise ConfigError("--format text has no place for tokens; choose --format jsonl or parquet")
    if format == "text" and arguments.push_to_hub:
        raise ConfigError("--push-to-hub needs columns; choose --format jsonl or parquet")


def _format(arguments: Namespace) -> str:
    suffix = "" if arguments.output is None else arguments.output.suffix
    return arguments.format or BY_SUFFIX.get(suffix, "text")


def _open_corpus(arguments: Namespace) -> "Corpus":
    from pipeline.config import DataConfig, make_section
    from pipeline.data.corpus import given_texts, is_table, split_rows, text_file, text_stream

    file = None if arguments.file == STDIN else arguments.file
    if arguments.data or (file is not None and is_table(file)):
        if file is not None and not file.is_file():
            raise ConfigError(f"--file {file}: there is no such file" + "; a folder is --data" * file.is_dir())
        data = make_section(
            "data",
            DataConfig,
            path=arguments.data or str(file),
            subset=arguments.subset,
            revision=arguments.revision,
        )
        return split_rows(data, arguments.split or "train", arguments.column or "source")
    if arguments.column:
        raise ConfigError(f"--column {arguments.column} is of a table, such as .jsonl; other texts have no columns")
    if arguments.texts:
        return given_texts(arguments.texts)
    if file is not None:
        return text_file(file)
    if sys.stdin.isatty():
        print("one source text a line; end with Ctrl-D", file=sys.stderr)
    return text_stream(sys.stdin.buffer, "standard input")


def _settings(arguments: Namespace, task: Any) -> "AnswerSettings":
    from pipeline.inference.corpus import AnswerSettings
    from pipeline.inference.hypotheses import Wanted

    return AnswerSettings(
        arguments.batch_size,
        arguments.overlong,
        arguments.on_bad_row,
        _language(arguments, task),
        arguments.source_lang,
        arguments.target_lang,
        Wanted(
            num_best=arguments.n_best,
            scores=arguments.scores,
            token_probabilities=arguments.token_probabilities,
            alignments=arguments.alignments,
            seed=arguments.seed,
            mbr=arguments.mbr,
        ),
    )


def _language(arguments: Namespace, task: Any) -> str:
    """Return the language of the texts, by whose rules sentences end, as far as somebody names it; else English."""
    from pipeline.languages import known_code
    from pipeline.tasks.config_loading import load_config
    from pipeline.training.checkpoints import find_config

    names = [arguments.source_lang, getattr(task.tokenizer, "src_lang", None), arguments.column]
    with suppress(ConfigError):  # a model of others, or of the Hub
        names.append(load_config(find_config(Path(arguments.checkpoint))).data.source)
    return next((code for name in names if name and (code := known_code(name))), "en")


class _Work:
    """A model that answers windows of texts, and shows how far it is."""

    def __init__(self, model: Any, task: Any, settings: "AnswerSettings", count: int | None):
        self.model, self.task, self.settings = model, task, settings
        self.tokens, self.texts, self.begin = 0, 0, time.monotonic()
        self.bar: Any = progress_bar("generate", "texts", math.inf if count is None else count)

    @property
    def window(self) -> int:
        """Texts in a window."""
        from pipeline.inference.corpus import BATCHES, WINDOW

        batch_size = self.settings.batch_size
        return WINDOW if batch_size is None else BATCHES * batch_size

    def answer(self, texts: Sequence["Text"]) -> list["Answer"]:
        from pipeline.inference.corpus import answer

        generation = getattr(self.model, "generation_config", None)
        before = self.texts
        answers = answer(self.model, self.task, texts, generation, self.settings, self._show)
        self.skip(texts[self.texts - before :])  # blank ones
        return answers

    def skip(self, texts: Sequence["Text"]) -> None:
        """Count texts that need no answer of this process."""
        self.texts += len(texts)
        self.bar.update(len(texts))

    def _show(self, samples: list[dict[str, Any]]) -> None:
        from pipeline.inference.corpus import is_first_of_text

        count = sum(map(is_first_of_text, samples))
        self.texts += count
        self.tokens += sum(self.task.lengths(sample)[0] for sample in samples)
        speed = self.tokens / max(time.monotonic() - self.begin, 1e-3)
        self.bar.set_postfix_str(f"{speed:,.0f} source tokens/s", refresh=False)
        self.bar.update(count)


def _print_answers(corpus: "Corpus", work: _Work, format: str, state: Any) -> "Summary":
    """Print the answers as soon as those of a window are there; several processes have a window each at a time.

    Texts one at a time gain nothing by a window, and who writes the next text may wait for the answer to this one.
    """
    from accelerate.utils import gather_object

    from pipeline.inference.corpus import Summary, windows
    from pipeline.inference.formats import LINES

    summary = Summary()
    size = 1 if work.settings.batch_size == 1 else work.window
    for turn in windows(windows(corpus.read(), size), state.num_processes):
        own = work.answer(turn[state.process_index]) if state.process_index < len(turn) else []
        everywhere = gather_object([own])
        if state.is_main_process:
            with work.bar.external_write_mode(sys.stdout):
                for answer in summary.counting(chain.from_iterable(everywhere)):
                    print(LINES[format](answer, work.settings.wanted))
                sys.stdout.flush()
    return summary


def _write_answers(corpus: "Corpus", work: _Work, arguments: Namespace, state: Any) -> "Summary":
    """Write the answers to a file, part by part, and publish it if that is asked for."""
    from pipeline.inference.corpus import Summary
    from pipeline.inference.parts import Output
    from pipeline.training.ranks import from_main_process

    format = _format(arguments)
    output = Output(arguments.output, _facts(arguments, corpus, work, format))
    from_main_process(lambda: output.begin(arguments.resume))
    summary = Summary()
    if not output.is_finished:
        together = _Together(state.num_processes)
        with output.locked() if state.is_main_process else nullcontext():
            count = output.fill(
                corpus.read(), work.window, work.answer, work.skip, state.process_index, state.num_processes
            )
            together.wait()
            if state.is_main_process:
                output.join(count, format, work.settings.wanted)
    if state.is_main_process:
        summary = output.read_summary()
    if state.is_main_process and arguments.push_to_hub:
        from pipeline.publishing.corpora import publish

        publish(output, arguments.push_to_hub)
    return summary


class _Together:
    """Waits for all processes, however much longer one of them takes; one that ends makes the others end."""

    def __init__(self, processes: int):
        # The usual group gives up after ten minutes.
        self.group = None
        if processes > 1:
            import torch

            self.group = torch.distributed.new_group(backend="gloo", timeout=timedelta(days=365))

    def wait(self) -> None:
        if self.group is not None:
            import torch

            torch.distributed.barrier(self.group)


def _facts(arguments: Namespace, corpus: "Corpus", work: _Work, format: str) -> dict[str, dict[str, Any]]:
    """Return what the answers are made of: with the same, the same command makes the same file."""
    from pipeline.inference.engines.base import describe_model

    generation = getattr(work.model, "generation_config", None)
    settings = asdict(work.settings)
    del settings["on_bad_row"]  # changes no answer that is there
    settings |= {"format": format, "engine": arguments.engine, "dtype": arguments.dtype}
    settings["generation"] = {} if generation is None else generation.to_diff_dict()
    settings["generation"].pop("transformers_version", None)
    return {"model": describe_model(arguments.checkpoint, arguments.engine), "data": corpus.facts, "settings": settings}


@contextmanager
def _values_explained(arguments: Namespace) -> Iterator[None]:
    """Name --set where a library refuses a value that is looked at when it is used, such as top_k."""
    try:
        yield
    except (ValueError, TypeError) as error:
        if not arguments.set:
            raise
        raise ConfigError(f"--set: {error}") from error


def _set_generation(arguments: Namespace, model: "PreTrainedModel") -> None:
    """Change the model's generation config by `--set`, and check the whole of it."""
    from pipeline.config import check_generation
    from pipeline.setup.generation_setup import changed_generation
    from pipeline.source import parse_overrides
    from pipeline.tasks.trained_model import check_token_ids

    if not model.can_generate():
        for option in ("set", "mbr"):
            if getattr(arguments, option):
                raise ConfigError(f"--{option}: this model generates no text; leave it out")
        return
    settings = check_generation(parse_overrides(arguments.set), lambda _: "--set: ")
    if arguments.mbr and (settings.get("num_beams", 1) != 1 or not settings.get("do_sample", True)):
        raise ConfigError("--set: --mbr draws samples and has no beams; leave out num_beams, and do_sample=false")
    check_token_ids(settings, model.config)
    place = "--set" if arguments.set else f"{arguments.checkpoint}: generation_config.json"
    model.generation_config = changed_generation(model.generation_config, settings, place)
