"""The model card: what was trained, on what, from what, with which result, and how to use it."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from ruamel.yaml import YAML
from ruamel.yaml.compat import StringIO
from transformers import PreTrainedModel, TrainerState

from pipeline.config import Config
from pipeline.sources import is_on_hub

TRANSLATE = """```python
from transformers import pipeline

translate = pipeline("translation", model="{name}", trust_remote_code=True)
print(translate("{example}"))
```

or, with all that `generate` can do:

"""
GENERATE = """```python
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}"{trust})
model = AutoModelForSeq2SeqLM.from_pretrained("{name}"{trust})
ids = model.generate(**tokenizer(["{example}"], padding=True, return_tensors="pt"))
print(tokenizer.batch_decode(ids, skip_special_tokens=True))
```"""
CODE = """

The model's code lies beside its weights, hence `trust_remote_code=True`; read it first."""


def card(
    config: Config,
    model: PreTrainedModel,
    state: TrainerState,
    scores: dict[str, dict[str, Any]],
    example: str = "...",
) -> str:
    """The text of README.md.

    Args:
        config: with the revision of the data at which they were read.
        scores: split -> name -> number or signature; those of an unfinished run are its last evaluation's.
        example: a source text, for the code that shows the use.
    """
    name = config.hub.model_id or Path(config.training["output_dir"]).name
    base = config.model.get("from")
    settings = StringIO()
    YAML().dump(config.model_dump(), settings)
    steps = f"{state.global_step:,}" + (f" of {state.max_steps:,}" if state.global_step < state.max_steps else "")
    return f"""---
{_metadata(config, name, scores).to_yaml()}
---
# {name}

An encoder-decoder Transformer ({type(model).__name__}) with {model.num_parameters():,} parameters,
{f"fine-tuned from `{base}`" if base else "trained from scratch"} with teacher-forcing for {steps} optimizer steps.

![Loss and accuracy while training](training_curves.png)

## Data

`{config.data.path}`, split `{config.data.train}`, column `{config.data.source}` to column `{config.data.target}`\
{f", at revision `{config.data.revision}`" if config.data.revision else ""}.

## Scores

{_table(scores)}

## Use

{_use(name, example, getattr(type(model), "_auto_class", None) is not None)}

## Limits

It has seen sources of up to {config.data.max_source_length} tokens and targets of up to
{config.data.max_target_length}, of the kind that the data above hold, and was scored on nothing else. What is wrong,
missing or one-sided in these data is likely to be so in what it writes.

## Licence

{f"`{config.hub.license}`" if config.hub.license else "Not stated by who trained it."} The data have terms of their own.

## Configuration

```yaml
{settings.getvalue()}```
"""


def _metadata(config: Config, name: str, scores: dict[str, dict[str, Any]]) -> ModelCardData:
    base = config.model.get("from")
    return ModelCardData(
        library_name="transformers",
        license=config.hub.license,
        base_model=base if base and not Path(base).exists() else None,
        datasets=[config.data.path] if is_on_hub(config.data.path) else None,
        pipeline_tag="translation",
        tags=["teacher-forcing", config.task],
        model_name=name,
        eval_results=_results(config, scores) or None,
    )


def _use(name: str, example: str, has_code: bool) -> str:
    text = example.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
    values = {"name": name, "example": text, "trust": ", trust_remote_code=True" if has_code else ""}
    if has_code:
        return TRANSLATE.format(**values) + GENERATE.format(**values) + CODE
    return GENERATE.format(**values)


def _table(scores: dict[str, dict[str, Any]]) -> str:
    if not scores:
        return "None yet: this is a checkpoint of a training that goes on."
    rows = [
        f"| {split} | {metric} | {f'{value:.4f}' if isinstance(value, float) else value} |"
        for split, values in scores.items()
        for metric, value in values.items()
    ]
    return "\n".join(["| split | metric | value |", "|---|---|---|", *rows])


def _results(config: Config, scores: dict[str, dict[str, Any]]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="translation",
            dataset_type=config.data.path,
            dataset_name=config.data.path,
            dataset_split=split,
            dataset_revision=config.data.revision,
            metric_type=metric,
            metric_value=value,
        )
        for split, values in scores.items()
        if split != "training"  # counters, no scores
        for metric, value in values.items()
        if not isinstance(value, str)
    ]
