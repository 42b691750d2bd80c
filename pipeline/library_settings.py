"""What transformers takes in the sections `training` and `generation`, with the kind and bounds of every value.

transformers checks few of them, and many only when they are used: after an hour of training, or never, so that a batch
size of 0 hangs.
"""

import dataclasses
import functools
import os
import typing
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from transformers import Seq2SeqTrainingArguments

MAX_ROWS = 1_000_000  # of a batch
MAX_TOKENS = 1_000_000  # of a text
MAX_BEAMS = 1_000
MAX_BATCHES = 10_000  # of a step; Trainer holds all of them at once
MAX_PROCESSES = 256


def check_path(path: str | None) -> str | None:
    """Refuse what the system refuses to look up, but for what is not there: it may be a name on the Hub.

    Raises:
        ValueError: with the system's reason.
    """
    try:
        if path is not None:
            os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise ValueError(f"{error.strerror}; name another path") from error
    except ValueError as error:  # of Python, for a NUL character
        raise ValueError(f"{error}; name another path") from error
    return path


def _check_steps(steps: int) -> int:
    if steps < 1 and steps != -1:
        raise ValueError("give a number of steps, at least 1, or -1 to count by num_train_epochs")
    return steps


PathName = Annotated[str, StringConstraints(min_length=1), AfterValidator(check_path)]
Seed = Annotated[int, Ge(0), Lt(2**32)]
Share = Annotated[float, Ge(0), Lt(1)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Count = Annotated[int, Ge(1)]
LengthPenalty = Annotated[float, Ge(-10), Le(10)]  # an exponent of the length
Divisor = Annotated[float, Ge(1e-3), Le(1e3)]  # of scores, which must stay finite in float16 as well

# Of torch.compile and of torch.utils.checkpoint, which look at them in the first step.
Backend = Literal["inductor", "eager", "aot_eager", "cudagraphs"]
Mode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
LogLevel = Literal["passive", "debug", "detail", "info", "warning", "error", "critical"]
CheckpointingKwargs = dict[Literal["use_reentrant", "preserve_rng_state", "determinism_check", "debug"], Any] | None

# Fields of which transformers says only that they are numbers or text.
TRAINING: dict[str, Any] = {
    "output_dir": PathName,
    "per_device_train_batch_size": Annotated[int, Ge(1), Le(MAX_ROWS)],
    "per_device_eval_batch_size": Annotated[int, Ge(1), Le(MAX_ROWS)],
    "gradient_accumulation_steps": Annotated[int, Ge(1), Le(MAX_BATCHES)],
    "eval_accumulation_steps": Count | None,
    "num_train_epochs": Positive,
    "max_steps": Annotated[int, AfterValidator(_check_steps)],
    "learning_rate": NotNegative,
    "warmup_steps": NotNegative,
    "weight_decay": NotNegative,
    "adam_beta1": Share,
    "adam_beta2": Share,
    "adam_epsilon": Positive,
    "max_grad_norm": NotNegative,
    "label_smoothing_factor": Share,
    "neftune_noise_alpha": NotNegative | None,
    "torch_empty_cache_steps": Count | None,
    "logging_steps": Positive,
    "eval_steps": Positive | None,
    "eval_delay": NotNegative,
    "save_steps": Positive,
    "save_total_limit": Count | None,
    "seed": Seed,
    "data_seed": Seed | None,
    "dataloader_num_workers": Annotated[int, Ge(0), Le(MAX_PROCESSES)],
    "dataloader_prefetch_factor": Annotated[int, Ge(1), Le(MAX_PROCESSES)] | None,
    "log_level": LogLevel,
    "log_level_replica": LogLevel,
    "lr_scheduler_kwargs": dict[str, Any] | None,
    "accelerator_config": dict[str, Any] | None,
    "torch_compile_backend": Backend | None,
    "torch_compile_mode": Mode | None,
    "activation_checkpointing_kwargs": CheckpointingKwargs,
    "gradient_checkpointing_kwargs": CheckpointingKwargs,
    "ddp_bucket_cap_mb": Count | None,
    "ddp_timeout": Annotated[int, Ge(1), Le(10**9)],
    "resume_from_checkpoint": PathName | bool | None,
}


class OwnTraining(BaseModel):
    """Keys of `training` that are this project's own; transformers does not get them."""

    r_drop: NotNegative = Field(
        0.0,
        description="weight of R-Drop (Liang et al. 2021, https://arxiv.org/abs/2106.14448): each batch goes through "
        "the model twice, and what the two predict is drawn together; 0: once "
        "(sequence_to_sequence, text_classification)",
    )
    adversarial_epsilon: NotNegative = Field(
        0.0,
        description="adversarial training (Miyato et al. 2017, https://arxiv.org/abs/1605.07725): learn from each text "
        "once more with its token vectors moved by this length to where the loss grows fastest; 0: only as it is "
        "(text_classification)",
    )
    ema_decay: Annotated[float, Gt(0), Lt(1)] | None = Field(
        None,
        description="evaluate, save and publish an exponential moving average of the weights, each step of which keeps "
        "this share of it, such as 0.999; null: the weights themselves",
    )
    average_patience: Annotated[int, Ge(1)] | None = Field(
        None,
        description="evaluate, save and publish the mean of the weights over all steps from the first evaluation on "
        "whose score is worse than the best of those more than N before it; with optim: sgd this is NT-ASGD (Merity et "
        "al. 2018, https://arxiv.org/abs/1708.02182, where N is 5); null: the weights themselves",
    )


@functools.cache
def training_types() -> dict[str, Any]:
    """Return the type of every argument of Seq2SeqTrainingArguments, and of our own keys beside them."""
    hints = typing.get_type_hints(Seq2SeqTrainingArguments)
    names = [field.name for field in dataclasses.fields(Seq2SeqTrainingArguments) if field.init]
    own = {name: field.rebuild_annotation() for name, field in OwnTraining.model_fields.items()}
    return {name: TRAINING.get(name, hints[name]) for name in names} | own


Tokens = Annotated[int, Ge(1), Le(MAX_TOKENS)]
TokenId = Annotated[int, Ge(0)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
Bias = Annotated[list[TokenIds | float], Field(min_length=2, max_length=2)]  # of a sequence
Probability = Annotated[float, Ge(0), Le(1)]


class GenerationSettings(BaseModel):
    """The fields of GenerationConfig that decide which one text is generated for a row.

    Others ask for several texts a row, for more than text, or for something that `generate` is handed beside its
    config, such as an assistant model, which an evaluation has not.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    # Length
    max_length: Tokens | None = None
    max_new_tokens: Tokens = 128  # where it is left out, a run takes data.max_target_length
    min_length: Annotated[int, Ge(0), Le(MAX_TOKENS)] | None = None
    min_new_tokens: Annotated[int, Ge(0), Le(MAX_TOKENS)] | None = None
    max_time: Positive | None = None
    exponential_decay_length_penalty: Annotated[list[NotNegative], Field(min_length=2, max_length=2)] | None = None
    # Search
    num_beams: Annotated[int, Ge(1), Le(MAX_BEAMS)] | None = None
    early_stopping: bool | Literal["never"] | None = None
    length_penalty: LengthPenalty | None = None
    use_cache: bool | None = None
    cache_implementation: Literal["dynamic", "static"] | None = None
    num_return_sequences: Literal[1] | None = None
    # Sampling
    do_sample: bool | None = None
    temperature: Divisor | None = None
    top_k: Annotated[int, Ge(0)] | None = None
    top_p: Annotated[float, Gt(0), Le(1)] | None = None
    min_p: Probability | None = None
    top_h: Annotated[float, Gt(0), Le(1)] | None = None
    typical_p: Annotated[float, Gt(0), Le(1)] | None = None
    epsilon_cutoff: Share | None = None
    eta_cutoff: Share | None = None
    # Scores of tokens
    repetition_penalty: Divisor | None = None
    encoder_repetition_penalty: Divisor | None = None
    no_repeat_ngram_size: Annotated[int, Ge(0), Le(MAX_TOKENS)] | None = None
    encoder_no_repeat_ngram_size: Annotated[int, Ge(0), Le(MAX_TOKENS)] | None = None
    bad_words_ids: Annotated[list[TokenIds], Field(min_length=1)] | None = None
    sequence_bias: Annotated[list[Bias], Field(min_length=1)] | None = None
    suppress_tokens: TokenIds | None = None
    begin_suppress_tokens: TokenIds | None = None
    renormalize_logits: bool | None = None
    remove_invalid_values: bool | None = None
    # Special tokens
    forced_bos_token_id: TokenId | None = None
    forced_eos_token_id: TokenId | TokenIds | None = None
    pad_token_id: TokenId | None = None
    bos_token_id: TokenId | None = None
    eos_token_id: TokenId | TokenIds | None = None
    decoder_start_token_id: TokenId | None = None
