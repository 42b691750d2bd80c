"""The model card: what was trained, on what, from what, with which scores, and how to use it.

The words and the order of a card are in `card.md.jinja`; what differs by task, in the task's `card`.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedModel, TrainerState

from pipeline.config import Config
from pipeline.data.hub_reading import is_on_hub
from pipeline.tasks.base import CardText, Task

TEMPLATE = Path(__file__).with_name("card.md.jinja")


def render_card(
    config: Config,
    task: Task,
    model: PreTrainedModel,
    state: TrainerState,
    scores: dict[str, dict[str, Any]],
    example: str = "...",
    phases: Sequence[str] = (),
) -> str:
    """Return the text of README.md.

    Args:
        config: with the revision at which the data were read.
        scores: split -> name -> number or signature; of an unfinished run, those of its last evaluation.
        example: a source text, for the code that shows the use.
        phases: what changed while the run was going on, from which step on.
    """
    name = _one_line(config.hub.model_id or Path(config.training["output_dir"]).name)
    base = config.model.get("from")
    has_code = getattr(type(model), "_auto_class", None) is not None
    steps = f"{state.global_step:,}" + (f" of {state.max_steps:,}" if state.global_step < state.max_steps else "")
    card = ModelCard.from_template(
        _metadata(config, task.card.pipeline_tag, name, scores),
        template_path=str(TEMPLATE),
        name=_escape(name),
        text=_fill_in(task.card, config, name, example, has_code),
        pictures=task.pictures,
        model_class=type(model).__name__,
        num_parameters=f"{model.num_parameters():,}",
        base=base and _as_code(base),
        steps=steps,
        data={key: _as_code(str(value)) for key, value in config.data.model_dump().items() if value is not None},
        scores=_score_rows(scores),
        remarks=task.remarks(scores),
        has_code=has_code,
        license=config.hub.license and _as_code(config.hub.license),
        phases=[_escape(phase) for phase in phases],
        configuration=config.to_yaml(),
        fence="`" * max(3, _longest_run(config.to_yaml()) + 1),
    )
    return f"{card}\n"


def _fill_in(text: CardText, config: Config, name: str, example: str, has_code: bool) -> CardText:
    """Return the task's texts with names of columns, the model's name and the example in their places."""
    task_keys = config.task_settings.model_dump() if config.task_settings else {}
    values = {
        key: ", ".join(_as_code(str(item)) for item in value) if isinstance(value, list) else _in_code(str(value))
        for key, value in (config.data.model_dump() | task_keys).items()
    }
    values |= {
        "name": _in_string(name),
        "example": _in_string(example),
        "trust": ", trust_remote_code=True" if has_code else "",
    }
    texts = {key: template.format(**values) for key, template in dataclasses.asdict(text).items()}
    return CardText(**texts)


def _metadata(config: Config, pipeline_tag: str, name: str, scores: dict[str, dict[str, Any]]) -> ModelCardData:
    base = config.model.get("from")
    return ModelCardData(
        library_name="transformers",
        license=config.hub.license,
        base_model=base if base and not Path(base).exists() else None,
        datasets=[config.data.path] if is_on_hub(config.data.path) else None,
        pipeline_tag=pipeline_tag,
        tags=["teacher-forcing", config.task],
        model_name=name,
        eval_results=_evaluation_results(config, pipeline_tag, scores) or None,
    )


def _score_rows(scores: dict[str, dict[str, Any]]) -> list[tuple[str, str, str]]:
    return [
        (_escape(split), _escape(metric), f"{value:.4f}" if isinstance(value, float) else _escape(str(value)))
        for split, values in scores.items()
        for metric, value in values.items()
    ]


def _evaluation_results(config: Config, pipeline_tag: str, scores: dict[str, dict[str, Any]]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=pipeline_tag,
            dataset_type=config.data.path,
            dataset_name=config.data.path,
            dataset_split=split,
            dataset_revision=config.data.revision,
            metric_type=metric,
            metric_value=value,
        )
        for split, values in scores.items()
        if split != "training"  # counters, not scores
        for metric, value in values.items()
        if not isinstance(value, str)
    ]


# Names and samples come from data and settings of anybody. In a card they are shown, and never are Markdown, HTML or
# code themselves. Each function is for one place.


def _one_line(text: str) -> str:
    """Return a text without line breaks, which `\\r` and others are too, and without characters that cannot be seen."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def _escape(text: str) -> str:
    """Return a text for a heading, a sentence or a cell of a table."""
    return re.sub(r"([\\`*\[\]<>|~&$])", r"\\\1", _one_line(text))


def _as_code(text: str) -> str:
    """Return a text as inline code, between more backticks than it has in a row."""
    text = _one_line(text)
    ticks, pad = "`" * (_longest_run(text) + 1), " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def _in_code(text: str) -> str:
    """Return a text for a place between single backticks."""
    return _one_line(text).replace("`", "'")


def _in_string(text: str) -> str:
    """Return a text for a place between double quotes in Python code, which reads it as it is."""
    return "".join(
        f"\\{character}" if character in '"\\' else character if character.isprintable() else repr(character)[1:-1]
        for character in text
    )


def _longest_run(text: str) -> int:
    """Count the backticks of the longest row of them."""
    return max(map(len, re.findall("`+", text)), default=0)
