"""Trains the model that a config describes: accelerate launch scripts/train.py CONFIG [section.key=value ...]"""

import argparse
import gc
import logging
import os
import sys

gc.disable()  # until everything is imported: what imports make stays, and to look through it again and again takes time
# Large tensors on the CPU in large pages: a matrix whose rows are 4 kB long else needs a page for each of them.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
from accelerate import PartialState
from transformers.utils import logging as transformers_logging

from pipeline import config as configuration
from pipeline.errors import ConfigError, DataError, NotPublished, RunError, Stopped
from pipeline.run import Result, run
from pipeline.signals import stop_with_launcher
from tokenizer.training import TokenizerError

gc.freeze()
gc.enable()

TABLE_ROWS = 10

EXIT_CODES = """Exit codes:
  0    finished
  2    wrong config or data
  3    the run cannot go on (disk full, values that are not finite, a hung worker); what was saved before is whole
  4    trained, scored and saved, but not published: see scripts/publish.py
  75   stopped by SIGTERM or SIGINT, and saved: the same command goes on
  130  interrupted before or after the training"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"{EXIT_CODES}\n\nKeys of a config:\n\n{configuration.describe()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", help="YAML file, such as configs/reversal.yaml")
    parser.add_argument("overrides", nargs="*", help="section.key=value, the value in YAML")
    parser.add_argument(
        "--accept-changes", action="store_true", help="go on with other settings in a folder that holds a run"
    )
    arguments = parser.parse_intermixed_args()
    stop_with_launcher()
    logging.basicConfig(format="%(message)s")
    is_main = os.environ.get("RANK", "0") == "0"
    logging.getLogger("pipeline").setLevel(logging.INFO if is_main else logging.ERROR)
    transformers_logging.disable_progress_bar()  # of loading and saving; the training's own stays
    try:
        result = run(configuration.load(arguments.config, arguments.overrides), arguments.accept_changes)
    except (ConfigError, DataError, TokenizerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        if PartialState().is_main_process:
            print(f"\n{stopped}", file=sys.stderr)
        return 75
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 4 if isinstance(error, NotPublished) else 3
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from the newest checkpoint, where there is one", file=sys.stderr)
        return 130
    if PartialState().is_main_process:
        report(result)
    return 0


def report(result: Result) -> None:
    """Prints predictions marked right or wrong, the scores, and where everything lies."""
    if result.was_finished:
        print(f"\nThis run is finished already; remove {result.output_dir} to train again.")
    if result.last is not None and any(each.prediction is not None for each in result.last.predictions):
        print("\nPredictions")
        for prediction in result.last.predictions[:TABLE_ROWS]:
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


if __name__ == "__main__":
    sys.exit(main())
