"""Perplexity of n-gram models beside a language model's, on its own tokens: scripts/score_ngrams.py CHECKPOINT"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run from a clone, whether installed or not

from transformers.utils import logging

from pipeline import config as configuration
from pipeline.errors import ConfigError, TeacherForcingError
from pipeline.inference.evaluation import evaluate
from pipeline.run import encode_split
from pipeline.tasks.language_modeling import LanguageModeling
from pipeline.tasks.registry import load
from pipeline.training.checkpoints import find_config
from scripts.ngrams import kneser_ney_perplexity, unigram_perplexity


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="folder of a trained language model")
    parser.add_argument("overrides", nargs="*", help="section.key=value, to change the config that it was trained with")
    parser.add_argument("--split", default="test", choices=["validation", "test"])
    parser.add_argument("--order", type=int, default=3, metavar="N", help="of the Kneser-Ney model")
    arguments = parser.parse_intermixed_args()
    logging.disable_progress_bar()
    try:
        config = configuration.load(find_config(arguments.checkpoint), arguments.overrides)
        model, task = load(arguments.checkpoint)
        if not isinstance(task, LanguageModeling):
            raise ConfigError(f"{arguments.checkpoint}: {config.task} has no n-grams to compare with")
        train = encode_split(config, task, config.data.train)
        test = encode_split(config, task, getattr(config.data, arguments.split))
        if not train or not test:
            raise ConfigError(f"data.{arguments.split} is not set; give it as data.{arguments.split}=...")
    except (TeacherForcingError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    ids, others, size = task.join(train), task.join(test), model.config.vocab_size
    scores = {
        "tokens": len(others) - 1,
        "unigram": unigram_perplexity(ids, others, size),
        f"kneser_ney_{arguments.order}": kneser_ney_perplexity(ids, others, size, arguments.order),
        "model": evaluate(model, task, test, batch_size=len(test)).numbers["perplexity"],
    }
    print(json.dumps(scores, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
