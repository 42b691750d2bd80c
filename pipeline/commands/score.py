"""teacher-forcing score: a checkpoint on a split."""

import json
import sys
from argparse import Namespace
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO

from pipeline.commands.arguments import Parser, add_engine, path, positive
from pipeline.commands.process import is_main, quick_imports
from pipeline.errors import ConfigError, explain_path


def add_arguments(parser: Parser) -> None:
    parser.add_argument("checkpoint", type=path, help="folder of a trained model, or a checkpoint-N below one")
    parser.add_argument("overrides", nargs="*", help="section.key=value, to change the config that it was trained with")
    parser.add_argument("--split", default="test", choices=["train", "validation", "test"], help="(default: test)")
    parser.add_argument("--config", type=path, help="another config than the one found beside the checkpoint")
    parser.add_argument("--batch-size", type=positive, default=32, metavar="N", help="rows at a time (default: 32)")
    add_engine(parser)
    parser.add_argument(
        "--allow-metric-code",
        action="store_true",
        help="run metrics that are not built in: code, which the config found beside a checkpoint may name",
    )
    parser.add_argument("--predictions", type=path, help="write one JSON line a sample: source, reference, prediction")


def run(arguments: Namespace) -> None:
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
    with _open_predictions(arguments.predictions if is_main() else None) as stream:
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
    if not is_main():
        return
    if missing := sorted(task.scores.keys() - result.scores.keys()):
        print(f"--engine {arguments.engine} does not give {', '.join(missing)}", file=sys.stderr)
    print(json.dumps(result.scores, indent=2))


def _open_predictions(path: Path | None) -> AbstractContextManager[IO[str] | None]:
    """Open the file before the scoring, so that a wrong path costs no time."""
    if path is None:
        return nullcontext()
    with explain_path(f"--predictions {path}"):
        return path.open("w", encoding="utf-8")
