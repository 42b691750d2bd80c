"""What may change between a run and its continuation.

Each key of a config stands in one of three lists, as a test checks. `section.*` stands for the keys of a section that
no list names. A key that is in no list, such as one of a task from outside this package, is refused.
"""

import json
import textwrap
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from pipeline.config import Config
from pipeline.data_config import HELD_OUT_SPLITS
from pipeline.errors import ConfigError
from pipeline.training.checkpoints import Phase

INDENTED: Any = {"initial_indent": "  ", "subsequent_indent": "  ", "break_on_hyphens": False}


def _keys(section: str, names: str) -> set[str]:
    return {f"{section}.{name}" for name in names.split()}


# No result so far, and none to come, depends on them.
FREE = (
    _keys("data", "worker_timeout hub_patience on_bad_row max_bad_rows lanes")  # lanes have a check of their own
    | _keys("evaluation", "show")
    | _keys("hub", "*")
    | _keys("training", "output_dir resume_from_checkpoint run_name project report_to")  # a folder may be moved
    | _keys("training", "trackio_space_id trackio_bucket_id trackio_static_space_id")
    | _keys("training", "logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter")
    | _keys("training", "include_num_input_tokens_seen log_level log_level_replica disable_tqdm skip_memory_metrics")
    | _keys("training", "save_strategy save_steps save_total_limit save_on_each_node debug")
    | _keys("training", "dataloader_num_workers dataloader_prefetch_factor dataloader_pin_memory dataloader_drop_last")
    | _keys("training", "dataloader_persistent_workers dataloader_multiprocessing_context dataloader_in_order")
    | _keys("training", "do_train do_eval do_predict local_rank torch_empty_cache_steps ddp_backend ddp_timeout")
    | _keys("training", "hub_token hub_strategy hub_always_push hub_revision")
)
# Applied from the resume point on, with --accept-changes.
APPLIED = (
    _keys("data", "path subset revision train validation test source target options filters")  # changed data
    | _keys("data", "mix weights temperature stages")
    | _keys("generation", "*")
    | _keys("evaluation", "*")
    | _keys("model", "dropout attention_dropout activation_dropout classifier_dropout embedding_dropout head_dropout")
    | _keys("model", "variational_dropout word_dropout weight_dropout")
    | _keys("training", "learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps max_steps num_train_epochs")
    | _keys("training", "weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm label_smoothing_factor")
    | _keys("training", "r_drop adversarial_epsilon")
    | _keys("training", "gradient_accumulation_steps per_device_train_batch_size average_tokens_across_devices")
    | _keys("training", "activation_checkpointing activation_checkpointing_kwargs auto_find_batch_size use_cpu")
    | _keys("training", "gradient_checkpointing gradient_checkpointing_kwargs neftune_noise_alpha use_cache")
    | _keys("training", "ema_decay average_patience")
    | _keys("training", "bf16 fp16 tf32 bf16_full_eval fp16_full_eval use_liger_kernel liger_kernel_config")
    | _keys("training", "torch_compile torch_compile_backend torch_compile_mode accelerator_config")
    | _keys("training", "ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph")
    | _keys("training", "eval_strategy eval_steps eval_delay eval_on_start eval_accumulation_steps")
    | _keys("training", "per_device_eval_batch_size prediction_loss_only eval_do_concat_batches batch_eval_metrics")
    | _keys("training", "eval_use_gather_object include_for_metrics")
    | _keys("training", "load_best_model_at_end metric_for_best_model greater_is_better")
)
# Of another run: weights, moments or the place in the data would not fit.
REFUSED = (
    {"task"}
    | _keys(
        "data",
        "source_lang target_lang source_tag target_lang_in streaming max_source_length max_target_length batch_tokens "
        "packing shuffle_window",
    )
    | _keys("tokenizer", "*")
    | _keys("augmentation", "*")
    | _keys("model", "*")
    | _keys("training", "optim optim_args optim_target_modules seed data_seed full_determinism")
    | _keys("training", "fsdp fsdp_config deepspeed parallelism_config label_names sortish_sampler")
    | {"language_modeling.bptt", "text_classification.labels", "forecasting.series", "forecasting.time"}
)
LENGTHS = {"training.max_steps", "training.num_train_epochs"}
# Their learning rate does not depend on where a training ends, so a training may be made longer or shorter.
ENDLESS_SCHEDULES = ("constant", "constant_with_warmup", "inverse_sqrt", "noam", "reduce_lr_on_plateau", "greedy")
CONTENT = "the content of data."  # and a place, in that of a key, where files hold something else
FILTERED = "+"  # in a fingerprint of training rows, between that of their content and that of their filters
HELD_OUT = tuple(f"{CONTENT}{split}" for split in HELD_OUT_SPLITS)  # of one set, or the beginning of several
OF_TRAINING_DATA = _keys("data", "path subset revision train source target options filters mix")
OF_SHARES = _keys("data", "mix weights temperature stages")  # what a window of a mixture is drawn by
# What is used when a run has made all of its steps; `evaluation.*` and `generation.*` are as well.
USED_AT_THE_END = (
    LENGTHS
    | _keys("training", "load_best_model_at_end per_device_eval_batch_size use_cpu use_cache")
    | _keys("data", "path subset revision train validation test source target options mix weights temperature stages")
)
# What the score of the best checkpoint so far depends on; those of `generation.*` do as well.
OF_SCORES = (
    _keys("data", "path subset revision validation source target options")
    | _keys("evaluation", "metrics sacrebleu num_beams max_rows")
    | _keys("training", "metric_for_best_model greater_is_better")
)


def list_of(key: str) -> set[str]:
    """Return the list that a key stands in."""
    for names in (key, f"{key.split('.')[0]}.*"):
        for keys in (FREE, APPLIED, REFUSED):
            if names in keys:
                return keys
    return REFUSED


def differences(before: Config, now: Config) -> dict[str, list[Any]]:
    """Return the keys on which results depend and whose values differ: key -> value before, value now."""
    found = _differences(before.model_dump(), now.model_dump())
    return {key: values for key, values in found.items() if list_of(key) is not FREE}


def need_consent(changes: Collection[str], before: Config, now: Config) -> list[str]:
    """Return the changes that are not made without `--accept-changes`."""
    is_endless = _has_no_end(before) and _has_no_end(now)
    return [key for key in changes if not (is_endless and key in LENGTHS)]


def changed_content(before: Mapping[str, str] | None, now: Mapping[str, str]) -> dict[str, list[Any]]:
    """Return which data are others than before, as `differences` does; none where that is not known.

    Args:
        before, now: fingerprints by `DataConfig.places`.
    """
    return {
        f"{CONTENT}{place}": [fingerprint[:12], now[place][:12]]
        for place, fingerprint in (before or {}).items()
        if place in now and now[place].split(FILTERED)[0] != fingerprint.split(FILTERED)[0]
    }


def other_training_data(
    before: Mapping[str, str] | None, now: Mapping[str, str], changes: Collection[str]
) -> set[str] | None:
    """Return the places of the rows to train on that are others than before, or new; None where none are.

    Args:
        before, now: fingerprints by `DataConfig.places`; where they are not known, the changed keys tell.
    """
    places = {place for place in now if not place.startswith(HELD_OUT_SPLITS)}
    if before is None:
        return places if OF_TRAINING_DATA & {*changes} else None
    return {place for place in places if before.get(place) != now[place]} or None


def refuse_unused(changes: Collection[str], steps_made: int, max_steps: int) -> None:
    """Refuse settings that the rest of a run would not use, so that nothing claims them.

    Raises:
        ConfigError: for fewer steps than were made, or a change of the training where none is left.
    """
    if max_steps < steps_made:
        raise ConfigError(
            f"training.max_steps: the run has made {steps_made} steps, more than the {max_steps} that max_steps or "
            "num_train_epochs ask for; raise them, or name an earlier checkpoint by training.resume_from_checkpoint"
        )
    unused = [
        key
        for key in changes
        if key not in USED_AT_THE_END and not key.startswith(("evaluation.", "generation.", *HELD_OUT))
    ]
    if max_steps == steps_made and unused:
        raise ConfigError(
            f"{', '.join(unused)}: the run has made all of its {max_steps} steps, so would not use the change; "
            "take it back, or raise training.max_steps"
        )


def change_scores(changes: Collection[str]) -> bool:
    """Tell whether scores from now on mean something else than those before."""
    return any(key in OF_SCORES or key.startswith(("generation.", *HELD_OUT)) for key in changes)


def score_turns(phases: Iterable[Phase]) -> list[int]:
    """List the steps of a run from which on its scores mean something else than before."""
    return [phase.first_step for phase in phases if change_scores(phase.changes)]


def describe_phases(phases: Collection[Phase]) -> list[str]:
    """Say what changed in a run while it was going on, one line a change; none where nothing did."""
    return [
        f"from step {phase.first_step} on: {key}: {_value(now)} (before: {_value(before)})"
        for phase in phases
        for key, (before, now) in phase.changes.items()
    ]


def as_text() -> str:
    """Return the three lists, for `--help`."""
    titles = (
        (FREE, "Free to change:"),
        (APPLIED, "Applied from the resume point on, with --accept-changes:"),
        (REFUSED, "Refused with it as well:"),
    )
    notes = (
        f"training.max_steps and num_train_epochs are free where the schedule has no end: "
        f"{', '.join(ENDLESS_SCHEDULES)}.\n"
        "Other data are read from their first row on. After a change of per_device_train_batch_size some rows of the "
        "present window may be read twice, or not in this pass.\n"
        "A changed list of classes is refused, wherever it comes from."
    )
    lists = (f"{title}\n{textwrap.fill('  '.join(sorted(keys)), 100, **INDENTED)}" for keys, title in titles)
    return "\n".join([*lists, notes])


def _has_no_end(config: Config) -> bool:
    training = config.training
    is_share = 0 < training.get("warmup_steps", 0) < 1  # of all steps
    return training.get("lr_scheduler_type", "linear") in ENDLESS_SCHEDULES and not is_share


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _differences(before: Any, now: Any, key: str = "") -> dict[str, list[Any]]:
    """Return dotted keys, two levels deep, whose values differ."""
    if isinstance(before, dict) and isinstance(now, dict) and key.count(".") < 1:
        found: dict[str, list[Any]] = {}
        for name in sorted({*before, *now}):
            found |= _differences(before.get(name), now.get(name), f"{key}.{name}" if key else name)
        return found
    return {} if before == now else {key: [before, now]}
