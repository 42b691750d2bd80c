"""Generates one line for each text given: scripts/generate.py CHECKPOINT [TEXT ...], or --file, or standard input."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run from a clone, whether installed or not

import torch
from transformers.utils import logging

from pipeline.config import parse_overrides
from pipeline.errors import ConfigError, TeacherForcingError
from pipeline.inference.generation import generate
from pipeline.tasks.registry import load


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="folder or Hub id of a trained model")
    parser.add_argument("texts", nargs="*", help="source texts")
    parser.add_argument("--file", type=Path, help="read the source texts from this file, one a line")
    parser.add_argument("--batch-size", type=int, default=128, metavar="N")
    parser.add_argument("--seed", type=int, help="for sampling")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="change the stored generation config, such as: --set do_sample=true top_k=10 temperature=0.6",
    )
    arguments = parser.parse_intermixed_args()
    if arguments.texts and arguments.file:
        parser.error("give texts or --file, not both")
    logging.disable_progress_bar()
    try:
        model, task = load(arguments.checkpoint)
        if not model.can_generate() and arguments.set:
            raise ConfigError("--set: this model generates no text; there is nothing to set")
        if arguments.set and (unknown := model.generation_config.update(**parse_overrides(arguments.set))):
            raise ConfigError(f"--set: {', '.join(unknown)}: no such key in GenerationConfig")
        if model.can_generate():
            model.generation_config.validate(strict=True)
        texts = arguments.texts or read_lines(arguments.file)
        if arguments.seed is not None:
            torch.manual_seed(arguments.seed)
        answers = generate(model, task, texts, batch_size=arguments.batch_size)
    except (TeacherForcingError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for text in answers:
        print(" ".join(text.splitlines()))
    return 0


def read_lines(file: Path | None) -> list[str]:
    if file is None and sys.stdin.isatty():
        print("one source text a line; end with Ctrl-D", file=sys.stderr)
    data = sys.stdin.buffer.read() if file is None else file.read_bytes()
    # Newlines alone end a line, so that there is one answer for each line that other tools count.
    return [line.removesuffix("\r") for line in data.decode("utf-8").removesuffix("\n").split("\n")] if data else []


if __name__ == "__main__":
    sys.exit(main())
