"""teacher-forcing plot: the curves of several runs in one picture."""

import math
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.commands.arguments import Parser, add_json, name, path, shortest_names
from pipeline.commands.process import quick_imports
from pipeline.commands.report import Report
from pipeline.errors import ConfigError, explain_path, nearest

PICTURES = (".png", ".svg", ".pdf")
LOSSES = {"training loss": "loss", "validation loss": "eval_loss"}
DRAWN_ANYWAY = ("eval_loss", "eval_perplexity")
NO_SCORES = ("step", "epoch")

Log = list[dict[str, Any]]


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "runs", nargs="+", type=path, metavar="RUN", help="training.output_dir of a run, or a checkpoint-N in it"
    )
    parser.add_argument(
        "--output", type=path, default=Path("curves.png"), help=f"{', '.join(PICTURES)} (default: curves.png)"
    )
    parser.add_argument(
        "--score", type=name, metavar="NAME", help="beside the losses (default: the first by name that all runs have)"
    )
    add_json(parser)


def run(arguments: Namespace) -> Report:
    """Draw the curves of runs in one picture: training loss, validation loss and a score, up to the newest checkpoints.

    Runs that still go on are drawn too.
    """
    picture = arguments.output
    if picture.suffix not in PICTURES or picture.is_dir():
        raise ConfigError(f"--output {picture}: name a picture that ends in {', '.join(PICTURES)}")
    with quick_imports():
        from pipeline.plots import draw_runs
        from pipeline.training.checkpoints import read_log

    names = shortest_names(arguments.runs)
    if len({*names}) < len(names):
        raise ConfigError("a run is named twice; name each once")
    logs = {folder: read_log(folder) for folder in arguments.runs}
    keys = find_keys(logs, arguments.score)
    curves = {
        title: {run: points(log, key) for run, log in zip(names, logs.values(), strict=True)}
        for title, key in keys.items()
    }
    with explain_path(f"--output {picture}"):
        draw_runs(curves, picture)
    last = {
        run: {"folder": str(folder)} | {keys[title]: lines[run][-1][1] for title, lines in curves.items() if lines[run]}
        for run, folder in zip(names, arguments.runs, strict=True)
    }
    return Report({"picture": str(picture), "runs": last}, str(picture))


def find_keys(logs: Mapping[Path, Log], score: str | None) -> dict[str, str]:
    """Return what to draw: the title of a panel -> its key in the log lines.

    Args:
        logs: folder of a run -> its log lines.
        score: its name; None for the first by name that validation logged in all runs, if there is one.

    Raises:
        ConfigError: for a run that logged no such score, or where nothing is logged.
    """
    logged = {folder: {key for line in log for key in line} - {*NO_SCORES} for folder, log in logs.items()}
    anywhere, everywhere = set.union(*logged.values()), set.intersection(*logged.values())
    titles = {title: key for title, key in LOSSES.items() if key in anywhere}
    if not titles:
        raise ConfigError(f"{', '.join(map(str, logs))}: nothing is logged yet; see training.logging_steps")
    if score is None:
        key = min((key for key in everywhere if key.startswith("eval_") and key not in DRAWN_ANYWAY), default=None)
    else:
        key = f"eval_{score}" if f"eval_{score}" in anywhere else score
        for folder, keys in logged.items():
            if key not in keys:
                names = {key.removeprefix("eval_") for key in keys}
                raise ConfigError(f"--score: {folder} has logged no {score!r}{nearest(score, names - {score})}")
    return titles if key is None else titles | {key.removeprefix("eval_").replace("_", " "): key}


def points(log: Log, key: str) -> list[tuple[int, float]]:
    """Return (step, value) of the log lines that have a finite value under a key."""
    return [(line["step"], line[key]) for line in log if math.isfinite(line.get(key, math.nan))]
