"""The model card: what was trained, on what, from what, with which result, and how to use it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from ruamel.yaml import YAML
from ruamel.yaml.compat import StringIO
from transformers import PreTrainedModel, TrainerState

from pipeline.config import Config
from pipeline.data.hub_reading import is_on_hub

CODE = """

The model's code lies beside its weights, hence `trust_remote_code=True`; read it first."""


@dataclass(frozen=True)
class Kind:
    """What a card says of a task: `{name}`, `{example}` and `{trust}` are filled into the code."""

    tag: str
    model: str
    data: str
    use: str
    limits: str


SEEN = (
    "of the kind that the data above hold, and was scored on nothing else. What is wrong,\n"
    "missing or one-sided in these data is likely to be so in what it"
)
KINDS = {
    "sequence_to_sequence": Kind(
        "translation",
        "An encoder-decoder Transformer",
        "column `{source}` to column `{target}`",
        """from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}"{trust})
model = AutoModelForSeq2SeqLM.from_pretrained("{name}"{trust})
ids = model.generate(**tokenizer(["{example}"], padding=True, return_tensors="pt"))
print(tokenizer.batch_decode(ids, skip_special_tokens=True))""",
        "It has seen sources of up to {max_source_length} tokens and targets of up to\n{max_target_length}, "
        + SEEN
        + " writes.",
    ),
    "text_classification": Kind(
        "text-classification",
        "A Transformer encoder with a linear head",
        "class in column `{target}` of the text in column `{source}`",
        """from transformers import pipeline

classify = pipeline("text-classification", model="{name}"{trust})
print(classify("{example}"))""",
        "It has seen texts of up to {max_source_length} tokens,\n" + SEEN + " answers.",
    ),
    "language_modeling": Kind(
        "text-generation",
        "An LSTM language model",
        "the running text of column `{source}`",
        """from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}"{trust})
model = AutoModelForCausalLM.from_pretrained("{name}"{trust})
prompt = tokenizer("{example}", return_tensors="pt")
ids = model.generate(**prompt, do_sample=True, top_k=10, temperature=0.6, max_new_tokens=100)
print(tokenizer.decode(ids[0], skip_special_tokens=True))""",
        "It has seen texts\n" + SEEN + " writes.",
    ),
    "forecasting": Kind(
        "time-series-forecasting",
        "A Transformer encoder over patches of time series",
        "the series {series}",
        """import torch
from transformers import AutoModel

model = AutoModel.from_pretrained("{name}"{trust})
past_values = torch.rand(1, model.config.context_length, len(model.config.series))  # your series, in their own units
print(model(past_values=past_values).prediction_outputs)  # the next steps, in the same""",
        "It has seen series\n" + SEEN + " forecasts.",
    ),
}
TRANSLATE = """```python
from transformers import pipeline

translate = pipeline("translation", model="{name}", trust_remote_code=True)
print(translate("{example}"))
```

or, with all that `generate` can do:

"""


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
    kind = KINDS[config.task]
    name = config.hub.model_id or Path(config.training["output_dir"]).name
    base = config.model.get("from")
    values = config.data.model_dump() | {"series": ", ".join(f"`{each}`" for each in config.data.series or [])}
    settings = StringIO()
    YAML().dump(config.model_dump(), settings)
    steps = f"{state.global_step:,}" + (f" of {state.max_steps:,}" if state.global_step < state.max_steps else "")
    return f"""---
{_metadata(config, name, scores).to_yaml()}
---
# {name}

{kind.model} ({type(model).__name__}) with {model.num_parameters():,} parameters,
{f"fine-tuned from `{base}`" if base else "trained from scratch"} with teacher-forcing for {steps} optimizer steps.

![Loss and accuracy while training](training_curves.png)
{"![Forecasts of some windows](forecasts.png)" if config.task == "forecasting" else ""}

## Data

`{config.data.path}`, split `{config.data.train}`, {kind.data.format(**values)}\
{f", at revision `{config.data.revision}`" if config.data.revision else ""}.

## Scores

{_table(scores)}

## Use

{_use(config.task, name, example, getattr(type(model), "_auto_class", None) is not None)}

## Limits

{kind.limits.format(**values)}

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
        pipeline_tag=KINDS[config.task].tag,
        tags=["teacher-forcing", config.task],
        model_name=name,
        eval_results=_results(config, scores) or None,
    )


def _use(task: str, name: str, example: str, has_code: bool) -> str:
    text = example.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
    values = {"name": name, "example": text, "trust": ", trust_remote_code=True" if has_code else ""}
    code = f"```python\n{KINDS[task].use.format(**values)}\n```"
    if not has_code:
        return code
    return (TRANSLATE.format(**values) if task == "sequence_to_sequence" else "") + code + CODE


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
            task_type=KINDS[config.task].tag,
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
