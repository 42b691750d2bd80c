"""The model card, and the upload of a finished model."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCardData
from ruamel.yaml import YAML
from ruamel.yaml.compat import StringIO
from transformers import PreTrainedModel, TrainerState

from pipeline.config import Config, ConfigError, HubConfig

# What a checkpoint needs to load elsewhere, and what tells how it came to be; nothing else is ever uploaded.
PUBLISHED = ("*.safetensors", "*.json", "*.py", "*.png", "README.md", "run.yaml", "tokenizer.model")
NOT_PUBLISHED = ("checkpoint-*/*", "runs/*", ".*")


def card(config: Config, model: PreTrainedModel, state: TrainerState, scores: dict[str, dict[str, Any]]) -> str:
    """A model card that says what was trained, on what, with which result, and how to use it.

    Args:
        scores: split -> name -> number or signature.
    """
    name = config.hub.model_id or Path(config.training["output_dir"]).name
    data = ModelCardData(
        library_name="transformers",
        tags=["teacher-forcing", config.task],
        model_name=name,
        eval_results=_results(config, scores) or None,
    )
    table = "\n".join(
        f"| {split} | {metric} | {value if isinstance(value, str) else f'{value:.4f}'} |"
        for split, values in scores.items()
        for metric, value in values.items()
    )
    settings = StringIO()
    YAML().dump(config.model_dump(), settings)
    return f"""---
{data.to_yaml()}
---
# {name}

An encoder-decoder Transformer with {model.num_parameters():,} parameters, trained from scratch with
teacher-forcing for {state.global_step:,} optimizer steps on `{config.data.path}` (split `{config.data.train}`).

## Scores

| split | metric | value |
|---|---|---|
{table}

## Use

```python
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForSeq2SeqLM.from_pretrained("{name}", trust_remote_code=True)
ids = model.generate(**tokenizer(["..."], padding=True, return_tensors="pt"))
print(tokenizer.batch_decode(ids, skip_special_tokens=True))
```

The model's code lies beside its weights, hence `trust_remote_code=True`; read it first.

## Configuration

```yaml
{settings.getvalue()}```
"""


def _results(config: Config, scores: dict[str, dict[str, Any]]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="text2text-generation",
            dataset_type=config.data.path,
            dataset_name=config.data.path,
            dataset_split=split,
            metric_type=metric,
            metric_value=value,
        )
        for split, values in scores.items()
        for metric, value in values.items()
        if not isinstance(value, str)
    ]


def publish(folder: Path, settings: HubConfig) -> None:
    """Uploads a finished model in one commit.

    Raises:
        ConfigError: when no repository is named.
    """
    if settings.model_id is None:
        raise ConfigError("hub.model_id: name the repository to push to, as owner/name")
    api = HfApi()
    api.create_repo(settings.model_id, private=settings.private, exist_ok=True)
    api.upload_folder(
        repo_id=settings.model_id,
        folder_path=folder,
        allow_patterns=list(PUBLISHED),
        ignore_patterns=list(NOT_PUBLISHED),
        commit_message="Trained model",
    )
