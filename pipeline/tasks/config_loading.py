"""From a file, or plain values, to a config with the section of its task; keys of older versions are still read."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.config import Config, validate
from pipeline.data.addresses import is_remote
from pipeline.data.filters import RULES
from pipeline.data_config import HELD_OUT_SPLITS, DataConfig
from pipeline.errors import ConfigError
from pipeline.source import Location, Source, plain, read_source
from pipeline.tasks.base import Task
from pipeline.tasks.registry import TASKS, get_task

logger = logging.getLogger(__name__)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config, with `section.key=value` overrides.

    Raises:
        ConfigError: for the first key or value that cannot work, naming file and line, or the override.
    """
    return _validate(read_source(path, overrides))


def parse_config(values: dict[str, Any]) -> Config:
    """Make a config of plain values, one dict a section, as a YAML file would hold them.

    Raises:
        ConfigError: for the first key or value that cannot work.
    """
    return _validate(Source(plain(values, "config")))


def _validate(source: Source) -> Config:
    task = get_task(source.values.get("task", Config.model_fields["task"].default))
    config = validate(_with_new_names(source), task.settings, task.default_metrics)
    _check_filters(config, task, source)
    return config


def _check_filters(config: Config, task: type[Task], source: Source) -> None:
    """Refuse filters that have nothing to look at.

    Raises:
        ConfigError: for the first.
    """
    for name, corpus in config.data.corpora.items():
        for rule in corpus.filters.rules:
            if problem := _find_filter_problem(rule, corpus, config.task, task):
                mix = config.data.mix or {}
                is_own = name in mix and rule in mix[name].filters.model_fields_set
                location = ("data", *(("mix", name) if is_own else ()), "filters", rule)
                corpus_name = f"of data.mix.{name}, " if name and not is_own else ""
                raise ConfigError(f"{source.place(location)}{'.'.join(location)}: {corpus_name}{problem}")


def _find_filter_problem(rule: str, data: DataConfig, name: str, task: type[Task]) -> str | None:
    """Say why a rule cannot be used; None where it can."""
    if not task.has_independent_rows:
        return f"the rows of {name} are one text, of which no part can be left out; remove this key"
    if not task.text_columns:
        return f"the rows of {name} are not texts; remove this key"
    sides = data.filters.min_script_share or {} if rule == "min_script_share" else {}
    if other := [side for side in sides if side not in task.text_columns]:
        return f"the {other[0]} of {name} is not a text; remove it"
    if RULES[rule].compares_sides and len(task.text_columns) < 2:
        return f"{name} has no target text to compare with the source; remove this key"
    if rule == "drop_held_out" and not any(getattr(data, split) for split in HELD_OUT_SPLITS):
        return "there is no set of validation or test; name one, or remove this key"
    if rule == "drop_duplicates" and data.streaming and is_remote(data, data.train):
        return "a stream from the Hub or the web is not read twice to find them; set streaming=false, or leave it out"
    return None


def _with_new_names(source: Source) -> Source:
    """Move keys that stood in another section before into that of their task, with a line that names the new key."""
    own_task = source.values.get("task", Config.model_fields["task"].default)
    values, moved = dict(source.values), dict(source.moved)
    for old, (task, key), default in _renamed_keys():
        section = values.get(old[0])
        if not isinstance(section, dict) or old[1] not in section:
            continue
        value = section[old[1]]
        values[old[0]] = {name: other for name, other in section.items() if name != old[1]}
        if value == default:  # as in every run.yaml that was written then
            continue
        name, own_section, is_used = ".".join(old), values.get(task) or {}, task == own_task
        is_override = old in source.origins and (task, key) not in source.origins  # which wins over the file
        if key in own_section and not is_override:
            raise ConfigError(f"{source.place(old)}{name} is now {task}.{key}, which is given too; remove {name}")
        unused = "" if is_used else f", which {own_task} does not use"
        logger.warning("%s%s is now %s.%s%s", source.place(old), name, task, key, unused)
        if is_used:
            values[task] = {**own_section, key: value}
            moved[task, key] = old
    return replace(source, values=values, moved=moved)


def _renamed_keys() -> Iterator[tuple[Location, Location, Any]]:
    """Yield old place, new place and default of every key of a task that says where it stood before."""
    for task, task_class in TASKS.items():
        for key, field in task_class.settings.model_fields.items():
            if isinstance(field.json_schema_extra, dict) and "formerly" in field.json_schema_extra:
                old = tuple(str(field.json_schema_extra["formerly"]).split("."))
                yield old, (task, key), None if field.is_required() else field.default
