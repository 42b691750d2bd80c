"""teacher-forcing generate: what a model answers to texts."""

import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.commands.arguments import Parser, add_engine, add_languages, name, path, positive, seed
from pipeline.commands.process import is_main, quick_imports
from pipeline.commands.texts import check_text, decode, lines_of
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def add_arguments(parser: Parser) -> None:
    parser.add_argument("checkpoint", type=name, help="folder or Hub id of a trained model")
    parser.add_argument("texts", nargs="*", help="source texts")
    parser.add_argument("--file", type=path, help="read the source texts from this file, one a line")
    parser.add_argument("--batch-size", type=positive, default=128, metavar="N", help="texts at a time (default: 128)")
    parser.add_argument("--seed", type=seed, metavar="N", help="for sampling")
    add_languages(parser)
    add_engine(parser)
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="change the stored generation config, such as: --set do_sample=true top_k=10 temperature=0.6",
    )


def run(arguments: Namespace) -> None:
    """Generate one line for each text: from the command line, --file or standard input."""
    if arguments.texts and arguments.file:
        raise ConfigError("give texts or --file, not both")
    for number, text in enumerate(arguments.texts, start=1):
        check_text(text, f"text {number}")
    with quick_imports():
        import torch
        from transformers.utils import logging as transformers_logging

        from pipeline.inference.engines.base import load_engine
        from pipeline.inference.generation import generate

    transformers_logging.disable_progress_bar()
    model, task = load_engine(arguments.engine, arguments.checkpoint)
    _set_generation(arguments, model)
    if not (arguments.texts or arguments.file) and os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError("standard input cannot be shared by several processes; give texts or --file")
    texts = arguments.texts or _read_lines(arguments.file)
    if arguments.seed is not None:
        torch.manual_seed(arguments.seed + int(os.environ.get("RANK", "0")))
    try:
        answers = generate(
            model,
            task,
            texts,
            batch_size=arguments.batch_size,
            source_lang=arguments.source_lang,
            target_lang=arguments.target_lang,
        )
    except (ValueError, TypeError) as error:
        if not arguments.set:
            raise
        raise ConfigError(f"--set: {error}") from error  # some values are looked at when they are used, such as top_k
    for text in answers if is_main() else ():
        print(" ".join(text.splitlines()))


def _set_generation(arguments: Namespace, model: "PreTrainedModel") -> None:
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
    lines = lines_of(file, "--file")
    # Only newlines end a line, so that there is one answer for each line that other tools count.
    texts = [decode(line, name, number) for number, line in enumerate(lines, start=1)]
    return [text.removesuffix("\n").removesuffix("\r") for text in texts]
