"""Scores a checkpoint on a split: scripts/score.py CHECKPOINT [--split test] [section.key=value ...]"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run from a clone, whether installed or not

from transformers.utils import logging

from pipeline import config as configuration
from pipeline.errors import ConfigError, TeacherForcingError
from pipeline.inference.evaluation import evaluate
from pipeline.inference.metrics import load_metric
from pipeline.run import encode_split
from pipeline.tasks.registry import load
from pipeline.training.checkpoints import find_config


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="folder of a trained model, or a checkpoint-N below one")
    parser.add_argument("overrides", nargs="*", help="section.key=value, to change the config that it was trained with")
    parser.add_argument("--split", default="test", choices=["train", "validation", "test"])
    parser.add_argument("--config", type=Path, help="another config than the one found beside the checkpoint")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N")
    parser.add_argument("--predictions", type=Path, help="write one JSON line a sample: source, reference, prediction")
    arguments = parser.parse_intermixed_args()
    logging.disable_progress_bar()
    try:
        config = configuration.load(arguments.config or find_config(arguments.checkpoint), arguments.overrides)
        split = getattr(config.data, arguments.split)
        if split is None:
            raise ConfigError(f"data.{arguments.split} is not set; give it as data.{arguments.split}=...")
        model, task = load(arguments.checkpoint)
        metrics = [load_metric(name) for name in config.evaluation.metrics]
        features = encode_split(config, task, split)
    except (TeacherForcingError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    result = evaluate(
        model,
        task,
        features,
        batch_size=arguments.batch_size,
        generation=getattr(model, "generation_config", None),
        metrics=metrics,
    )
    if arguments.predictions:
        with arguments.predictions.open("w", encoding="utf-8") as stream:
            for prediction in result.predictions:
                print(json.dumps(vars(prediction), ensure_ascii=False), file=stream)
    print(json.dumps(result.scores, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
