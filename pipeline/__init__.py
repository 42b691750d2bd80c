"""teacher-forcing: train an encoder-decoder Transformer on your own pairs of sequences, in the Hugging Face ecosystem.

    from pipeline import evaluate, export, generate, load_config, load_trained, publish, train

    config = load_config("configs/reversal.yaml", ["training.max_steps=100"])
    result = train(config)  # scores, and the folder of the finished model
    model, task = load_trained(result.output_dir)
    generate(model, task, ["5 12 3 8 15 2 9 6 11 4"])
    evaluate(model, task, [{"source": "5 12 3", "target": "3 12 5"}], metrics=["exact_match"])
    export(result.output_dir, "transformers")  # a stock model, proven to compute the same
    publish(result.output_dir, "owner/name")

Names are imported when they are used, so that `import pipeline` takes no time.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.exporting.export import export
    from pipeline.inference.evaluation import evaluate
    from pipeline.inference.generation import generate
    from pipeline.publishing.hub import publish
    from pipeline.run import train
    from pipeline.tasks.config_loading import load_config
    from pipeline.tasks.trained_model import load_trained

try:
    __version__ = version("teacher-forcing")
except PackageNotFoundError:  # run from a clone that is not installed
    __version__ = "0+unknown"

__all__ = ["__version__", "evaluate", "export", "generate", "load_config", "load_trained", "publish", "train"]

_HOMES = {
    "evaluate": "pipeline.inference.evaluation",
    "export": "pipeline.exporting.export",
    "generate": "pipeline.inference.generation",
    "load_config": "pipeline.tasks.config_loading",
    "load_trained": "pipeline.tasks.trained_model",
    "publish": "pipeline.publishing.hub",
    "train": "pipeline.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # found at once the next time
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
