"""Trains the model that a config describes: accelerate launch scripts/train.py CONFIG [section.key=value ...]"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run from a clone, whether installed or not

from accelerate import PartialState
from transformers.utils import logging

from pipeline import config as configuration
from pipeline.run import Result, run
from tokenizer.training import TokenizerError

TABLE_ROWS = 10


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"Keys of a config:\n\n{configuration.describe()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", help="YAML file, such as configs/reversal.yaml")
    parser.add_argument("overrides", nargs="*", help="section.key=value, the value in YAML")
    arguments = parser.parse_args()
    logging.disable_progress_bar()  # of loading and saving; the training's own stays
    try:
        result = run(configuration.load(arguments.config, arguments.overrides))
    except (configuration.ConfigError, configuration.DataError, TokenizerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
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
    if result.last is not None:
        print("\nPredictions")
        for prediction in result.last.predictions[:TABLE_ROWS]:
            mark = "right" if prediction.is_right else "wrong"
            print(f"  {mark}  {prediction.source}  ->  {prediction.prediction}")
            if not prediction.is_right:
                print(f"         reference: {prediction.reference}")
    for split, scores in result.scores.items():
        print(f"\nScores on {split}")
        for name, value in scores.items():
            print(f"  {name:<22} {value if isinstance(value, str) else f'{value:.4f}'}")
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
