"""Compare a language model's perplexity with that of n-gram models on its tokens: scripts/score_ngrams.py CHECKPOINT"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from transformers.utils import logging

from pipeline.cli import print_errors
from pipeline.commands.arguments import path
from pipeline.errors import ConfigError
from pipeline.inference.evaluation import evaluate_features
from pipeline.tasks.config_loading import load_config
from pipeline.tasks.encoding import encode_split
from pipeline.tasks.language_modeling import LanguageModeling
from pipeline.tasks.trained_model import load_trained
from pipeline.training.checkpoints import find_config
from scripts.ngrams import kneser_ney_perplexity, unigram_perplexity

MAX_ORDER = 10


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=path, help="folder of a trained language model")
    parser.add_argument("overrides", nargs="*", help="section.key=value, to change the config that it was trained with")
    parser.add_argument("--split", default="test", choices=["validation", "test"])
    parser.add_argument("--order", type=int, default=3, metavar="N", help="of the Kneser-Ney model")
    return print_errors(score, parser.parse_intermixed_args(argv))


def score(arguments: argparse.Namespace) -> None:
    if not 1 <= arguments.order <= MAX_ORDER:
        raise ConfigError(f"--order {arguments.order}: give a number from 1 to {MAX_ORDER}")
    logging.disable_progress_bar()
    config = load_config(find_config(arguments.checkpoint), arguments.overrides)
    model, task = load_trained(arguments.checkpoint)
    if not isinstance(task, LanguageModeling):
        raise ConfigError(f"{arguments.checkpoint}: {config.task} has no n-grams to compare with")
    train = encode_split(config, task, "train")
    test = encode_split(config, task, arguments.split)
    if not train or not test:
        raise ConfigError(f"data.{arguments.split} is not set; give it as data.{arguments.split}=...")
    train_ids, test_ids, vocab_size = task.join(train), task.join(test), model.config.vocab_size
    scores = {
        "tokens": len(test_ids) - 1,
        "unigram": unigram_perplexity(train_ids, test_ids, vocab_size),
        f"kneser_ney_{arguments.order}": kneser_ney_perplexity(train_ids, test_ids, vocab_size, arguments.order),
        "model": evaluate_features(model, task, test, batch_size=len(test)).numbers["perplexity"],
    }
    print(json.dumps(scores, indent=2))


if __name__ == "__main__":
    sys.exit(main())
