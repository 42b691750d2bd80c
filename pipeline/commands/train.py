"""teacher-forcing train: a run, from its config to its scores."""

import logging
from argparse import Namespace
from typing import TYPE_CHECKING

from pipeline.commands.arguments import Parser, path
from pipeline.commands.process import is_main, quick_imports
from pipeline.errors import EXIT_CODES
from pipeline.signals import stop_with_launcher

if TYPE_CHECKING:
    from pipeline.run import RunResult

TABLE_ROWS = 10


def add_arguments(parser: Parser) -> None:
    parser.make_epilog = describe
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


def describe() -> str:
    with quick_imports():
        from pipeline import reference
        from pipeline.training import changes
    codes = "\n".join(f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES)
    going_on = f"What may change when a run goes on:\n{changes.as_text()}"
    return f"Exit codes:\n{codes}\n\n{going_on}\n\nKeys of a config:\n\n{reference.as_text()}"


def run(arguments: Namespace) -> None:
    """Train the model that a config describes, or go on with its run."""
    stop_with_launcher()
    with quick_imports():
        from accelerate import PartialState
        from transformers.utils import logging as transformers_logging

        from pipeline.rehearsal import raise_errors
        from pipeline.run import train
        from pipeline.tasks.config_loading import load_config

    logging.basicConfig(format="%(message)s")
    logging.getLogger("pipeline").setLevel(logging.INFO if is_main() else logging.ERROR)
    transformers_logging.disable_progress_bar()  # of loading and saving; the training's own stays
    config = load_config(arguments.config, arguments.overrides)
    result = train(config, accept_changes=arguments.accept_changes, dry_run=arguments.dry_run)
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
