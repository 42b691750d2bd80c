"""What may change while a run goes on: every key in one list, and nothing claimed that is not used."""

import dataclasses
import inspect

import pytest
from transformers import GenerationConfig, Seq2SeqTrainingArguments

from pipeline.config import RESERVED_TRAINING_KEYS, Config
from pipeline.errors import ConfigError
from pipeline.library_settings import OwnTraining
from pipeline.setup.model_factory import OWN_KEYS
from pipeline.tasks.registry import MODELS, TASKS
from pipeline.training import changes
from pipeline.training.changes import APPLIED, FREE, REFUSED, differences, list_of, need_consent, refuse_unused
from pipeline.training.checkpoints import Phase

LISTS = {"free": FREE, "applied": APPLIED, "refused": REFUSED}


def every_key() -> set[str]:
    """Every key that a config can have, `section.key`."""
    keys = {"task"}
    for name, field in Config.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            keys |= {f"{name}.{key}" for key in field.annotation.model_fields}  # type: ignore[union-attr]
    for name, task in TASKS.items():
        keys |= {f"{name}.{key}" for key in task.settings.model_fields}
    arguments = {field.name for field in dataclasses.fields(Seq2SeqTrainingArguments) if field.init}
    keys |= {f"training.{name}" for name in (arguments - RESERVED_TRAINING_KEYS.keys()) | {*OwnTraining.model_fields}}
    keys |= {f"generation.{name}" for name in vars(GenerationConfig())}
    keys |= {f"model.{name}" for name in OWN_KEYS}
    return keys | {f"model.{name}" for spec in MODELS.values() for name in inspect.signature(spec.config).parameters}


def lists_that_name(key: str) -> list[str]:
    """The lists with a key itself, or else those with the rest of its section."""
    exact = [name for name, keys in LISTS.items() if key in keys]
    return exact or [name for name, keys in LISTS.items() if f"{key.split('.')[0]}.*" in keys]


def test_every_key_stands_in_exactly_one_list():
    keys = every_key()
    assert len(keys) > 250
    assert {key: lists_that_name(key) for key in keys if len(lists_that_name(key)) != 1} == {}
    assert lists_that_name("training.made_up") == lists_that_name("data.made_up") == []


def test_no_list_names_a_key_that_is_gone():
    named = {key for keys in LISTS.values() for key in keys if not key.endswith(".*")}
    assert named - every_key() == set()


def test_the_lists_are_as_agreed():
    for key in ("training.logging_steps", "training.save_steps", "training.report_to", "hub.push"):
        assert list_of(key) is FREE
    for key in ("training.learning_rate", "training.adam_beta1", "training.weight_decay", "training.lr_scheduler_type"):
        assert list_of(key) is APPLIED
    for key in ("training.max_steps", "training.gradient_accumulation_steps", "training.bf16", "model.dropout"):
        assert list_of(key) is APPLIED
    for key in ("training.gradient_checkpointing", "generation.num_beams", "evaluation.metrics", "data.revision"):
        assert list_of(key) is APPLIED
    for key in ("model.d_model", "tokenizer.kind", "training.seed", "training.data_seed", "data.batch_tokens"):
        assert list_of(key) is REFUSED
    for key in ("data.shuffle_window", "task_of_somebody_else.size", "model.size_of_somebody_else"):
        assert list_of(key) is REFUSED


def test_differences_leave_out_what_is_free(make_config):
    now = make_config(training={"logging_steps": 1, "learning_rate": 0.1}, generation={"num_beams": 2})
    assert differences(make_config(), now) == {
        "generation.num_beams": [None, 2],
        "training.learning_rate": [None, 0.1],
    }


@pytest.mark.parametrize(
    "schedule, is_free",
    [({}, False), ({"lr_scheduler_type": "constant"}, True)]
    + [({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": share}, share > 1) for share in (0.1, 10)],
)
def test_a_run_may_be_made_longer_where_the_schedule_has_no_end(make_config, schedule, is_free):
    before, now = (make_config(training={**schedule, "max_steps": steps}) for steps in (4, 8))
    assert need_consent(differences(before, now), before, now) == ([] if is_free else ["training.max_steps"])


def test_what_would_not_be_used_is_refused():
    refuse_unused(["training.learning_rate"], 4, 5)
    refuse_unused(["generation.num_beams", "evaluation.metrics", "the content of data.test"], 4, 4)
    with pytest.raises(ConfigError, match=r"^training.learning_rate, the content of data.train: .* all of its 4 steps"):
        refuse_unused(["training.learning_rate", "generation.num_beams", "the content of data.train"], 4, 4)
    with pytest.raises(ConfigError, match=r"^training.max_steps: the run has made 4 steps, more than the 3"):
        refuse_unused([], 4, 3)


def test_phases_are_told_in_lines():
    phases = [Phase(1, {}), Phase(5, {"training.learning_rate": [None, 1.0], "data.path": ["a", "b\n# c"]})]
    assert changes.describe_phases(phases) == [
        "from step 5 on: training.learning_rate: 1.0 (before: null)",
        'from step 5 on: data.path: "b\\n# c" (before: "a")',
    ]


def test_the_help_names_every_list(command, capsys):
    with pytest.raises(SystemExit):
        command("train", "--help")
    text = capsys.readouterr().out
    for keys in LISTS.values():
        assert all(key in text for key in keys)
