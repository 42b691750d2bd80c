"""teacher-forcing train: a run, from its config to its scores."""

import logging
from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.commands.arguments import Parser, add_json, path
from pipeline.commands.process import quick_imports, show_logs
from pipeline.commands.report import Report
from pipeline.errors import EXIT_CODES, TeacherForcingError
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
    add_json(parser)


def describe() -> str:
    with quick_imports():
        from pipeline import reference
        from pipeline.training import changes
    codes = "\n".join(f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES)
    going_on = f"What may change when a run goes on:\n{changes.as_text()}"
    return f"Exit codes:\n{codes}\n\n{going_on}\n\nKeys of a config:\n\n{reference.as_text()}"


def run(arguments: Namespace) -> Report:
    """Train the model that a config describes, or go on with its run."""
    stop_with_launcher()
    with quick_imports():
        from pipeline.run import train
        from pipeline.tasks.config_loading import load_config

    show_logs(logging.INFO)
    config = load_config(arguments.config, arguments.overrides)
    result = train(config, accept_changes=arguments.accept_changes, dry_run=arguments.dry_run)
    return _report_findings(result) if result.findings else _report_result(result)


def _report_findings(result: "RunResult") -> Report:
    """Say what a rehearsal found, one line each."""
    from pipeline.rehearsal import raise_errors

    findings = [{name: getattr(finding, name) for name in ("check", "status", "text")} for finding in result.findings]
    lines = [f"\nRehearsal of the run in {result.output_dir}"]
    lines += [f"  {finding['status']:<7}  {finding['check']:<15}  {finding['text']}" for finding in findings]
    worst = None
    try:
        raise_errors(result.findings)
    except TeacherForcingError as error:
        worst = error
    return Report({"output_dir": str(result.output_dir), "findings": findings}, "\n".join(lines), worst)


def _report_result(result: "RunResult") -> Report:
    """Say which predictions are right or wrong, the scores, and where everything lies."""
    document = {"output_dir": str(result.output_dir), "was_finished": result.was_finished, "scores": result.scores}
    return Report(document, "\n".join([*_predictions(result), *_scores(result), *_places(result)]))


def _predictions(result: "RunResult") -> Iterator[str]:
    if result.was_finished:
        yield f"\nThis run is finished already; remove {result.output_dir} to train again."
    predictions = [] if result.last is None else result.last.predictions
    if any(prediction.prediction is not None for prediction in predictions):
        yield "\nPredictions"
        for prediction in predictions[:TABLE_ROWS]:
            mark = "right" if prediction.is_right else "wrong"
            yield f"  {mark}  {prediction.source}  ->  {prediction.prediction}"
            if not prediction.is_right:
                yield f"         reference: {prediction.reference}"


def _scores(result: "RunResult") -> Iterator[str]:
    for split, scores in result.scores.items():
        titles = {"training": "Left out of the training", "generation": "Chosen on validation"}
        yield f"\n{titles.get(split, f'Scores on {split}')}"
        for name, value in scores.items():
            yield f"  {name:<22} {_number(value)}"


def _number(value: object) -> str:
    """A score as it is printed; those of several length penalties or corpora one after another."""
    if isinstance(value, dict):
        parts = {
            name: f"({_number(part)})" if isinstance(part, dict) else _number(part) for name, part in value.items()
        }
        return ", ".join(f"{name}: {part}" for name, part in parts.items())
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _places(result: "RunResult") -> Iterator[str]:
    yield "\nWhere things lie"
    for name, meaning in (
        ("", "model, tokenizer, generation config, card (README.md); checkpoints below"),
        ("training_curves.png", "loss and accuracy, training and validation"),
        ("runs", "TensorBoard events: tensorboard --logdir"),
        ("metrics.json", "the scores above"),
    ):
        yield f"  {result.output_dir / name}  {meaning}"
