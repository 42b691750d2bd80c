"""teacher-forcing score: a checkpoint on a split."""

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.commands.arguments import Parser, add_batch_size, add_dtype, add_engine, add_json, add_mbr, path, seed
from pipeline.commands.process import join_processes, quick_imports, show_logs
from pipeline.commands.report import Report
from pipeline.errors import ConfigError, explain_path
from pipeline.progress import is_main

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

    from pipeline.config import Config
    from pipeline.tasks.base import Task

USED_SECTIONS = {"task", "data", "generation", "evaluation"}  # of a config, by `score`


def add_arguments(parser: Parser) -> None:
    parser.add_argument("checkpoint", type=path, help="folder of a trained model, or a checkpoint-N below one")
    parser.add_argument(
        "overrides",
        nargs="*",
        help="section.key=value, to change the config that it was trained with, or the generation config of the model",
    )
    parser.add_argument("--split", default="test", choices=["train", "validation", "test"], help="(default: test)")
    parser.add_argument("--config", type=path, help="another config than the one found beside the checkpoint")
    add_batch_size(parser, "rows")
    add_mbr(parser)
    parser.add_argument("--seed", type=seed, metavar="N", help="of the samples of --mbr (default: 0)")
    add_engine(parser)
    add_dtype(parser)
    parser.add_argument(
        "--allow-metric-code",
        action="store_true",
        help="run metrics that are not built in: code, which the config found beside a checkpoint may name",
    )
    parser.add_argument(
        "--predictions",
        type=path,
        help="write one JSON line a sample: source, reference, prediction, and corpus where there are several",
    )
    parser.add_argument(
        "--per-row",
        type=path,
        metavar="FILE",
        help="write one JSON line a row of the split: row (its number), log_probability (of the target, in nats) and "
        "items (the tokens that it is a sum of)",
    )
    add_json(parser)


def run(arguments: Namespace) -> Report:
    """Score a checkpoint on a split, and print the scores as JSON."""
    if arguments.per_row and arguments.predictions and arguments.per_row.resolve() == arguments.predictions.resolve():
        raise ConfigError(f"--per-row and --predictions are both {arguments.per_row}; name a file for each")
    if arguments.seed is not None and not arguments.mbr:
        raise ConfigError("--seed is of --mbr N; nothing else is sampled by it")
    with quick_imports():
        from pipeline.inference.engines.base import load_engine
        from pipeline.inference.evaluation import evaluate_features
        from pipeline.inference.metrics import load_metrics, refuse_metric_code
        from pipeline.inference.sampling import MinimumBayesRisk
        from pipeline.tasks.config_loading import load_config
        from pipeline.tasks.encoding import encode_split
        from pipeline.tasks.registry import get_task
        from pipeline.training.checkpoints import find_config

    show_logs()
    join_processes()
    given = _given_sections(arguments.overrides)
    config = load_config(arguments.config or find_config(arguments.checkpoint), arguments.overrides)
    if arguments.split != "train" and not config.data.held_out(arguments.split):
        raise ConfigError(f"data.{arguments.split} is not set; give it as data.{arguments.split}=...")
    if not arguments.allow_metric_code:
        refuse_metric_code(config.evaluation.metrics)
    model, task = load_engine(arguments.engine, arguments.checkpoint, arguments.dtype)
    if not isinstance(task, get_task(config.task)):
        raise ConfigError(f"task: {arguments.checkpoint} is not a model for {config.task}")
    _check_options(arguments, config, model, task)
    generation = _changed_generation(given.get("generation") or {}, config, model)
    metrics = load_metrics(config.evaluation)
    features = encode_split(config, task, arguments.split)
    with (
        _open_lines("--predictions", arguments.predictions) as write_predictions,
        _open_lines("--per-row", arguments.per_row) as write_rows,
    ):
        result = evaluate_features(
            model,
            task,
            features,
            batch_size=arguments.batch_size,
            generation=generation,
            metrics=metrics,
            mbr=MinimumBayesRisk(arguments.mbr, arguments.seed or 0) if arguments.mbr else None,
        )
        write_predictions(result.predictions)
        write_rows(task.score_rows(features, result.sums) if arguments.per_row else ())
    if is_main() and (missing := sorted(task.scores.keys() - result.scores.keys())):
        print(f"--engine {arguments.engine} does not give {', '.join(missing)}", file=sys.stderr)
    return Report(result.scores, json.dumps(result.scores, indent=2))


def _given_sections(overrides: Sequence[str]) -> dict[str, Any]:
    """Return what the overrides say, by section; raise ConfigError for one that a trained model has no use for."""
    from pipeline.source import parse_overrides

    given = parse_overrides(overrides)
    if useless := sorted(given.keys() - USED_SECTIONS):
        raise ConfigError(
            f"{useless[0]}: `score` takes the model and all of its parts from the checkpoint, so this would change "
            f"nothing; leave it out. It takes overrides of {', '.join(sorted(USED_SECTIONS))}, and --batch-size"
        )
    return given


def _check_options(arguments: Namespace, config: "Config", model: "PreTrainedModel", task: "Task") -> None:
    """Raise ConfigError for what this model cannot be asked for."""
    if arguments.per_row and not task.has_log_probabilities:
        raise ConfigError(
            f"--per-row: a model for {config.task} gives no probability of what it predicts; its loss is not made of "
            "log-probabilities; leave --per-row out"
        )
    if arguments.mbr and not model.can_generate():
        raise ConfigError(f"--mbr: a model for {config.task} generates no text; leave it out")
    if arguments.mbr and not config.evaluation.metrics:
        raise ConfigError(
            "--mbr: no text is generated without evaluation.metrics; name some: evaluation.metrics=[chrf]"
        )


def _changed_generation(given: Container[str], config: "Config", model: "PreTrainedModel") -> "GenerationConfig | None":
    """Return the model's generation config, with what is given; the rest of the config made the model."""
    from pipeline.setup.generation_setup import changed_generation
    from pipeline.tasks.trained_model import check_token_ids

    changes = {name: value for name, value in config.generation.items() if name in given}
    if not changes:
        return getattr(model, "generation_config", None)
    if not model.can_generate():
        raise ConfigError(f"generation: a model for {config.task} generates no text; leave it out")
    check_token_ids(changes, model.config)
    return changed_generation(model.generation_config, changes, "generation")


@contextmanager
def _open_lines(option: str, path: Path | None) -> Iterator[Callable[[Iterable[Any]], None]]:
    """Open a file before the scoring, so that a wrong path costs no time; what it yields writes a JSON line an object.

    It writes nothing where no path is given, and on the main process only.
    """
    if path is None or not is_main():
        yield lambda objects: None
        return

    def write(objects: Iterable[Any]) -> None:
        with explain_path(f"{option} {path}"), stream:
            for one in objects:
                fields = {name: value for name, value in vars(one).items() if name != "corpus" or value is not None}
                print(json.dumps(fields, ensure_ascii=False), file=stream)

    with explain_path(f"{option} {path}"):
        stream = path.open("w", encoding="utf-8")
    with stream:
        yield write
