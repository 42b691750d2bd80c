"""Every key of a config with its type, default and meaning, read from the code that checks it.

`teacher-forcing train --help` prints it as text. configs/REFERENCE.md holds it as Markdown, as a test checks;
`python -m pipeline.reference` writes that page anew.
"""

import dataclasses
import inspect
import json
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from transformers import PreTrainedConfig

from pipeline.config import Config
from pipeline.inference.metrics import METRICS
from pipeline.library_settings import OwnTraining
from pipeline.tasks.registry import MODELS, TASKS
from tokenizer.training import KINDS

LIMITS = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))  # as pydantic calls them

PAGE = """# Every key of a config

Written by `python -m pipeline.reference`: do not edit. The meanings stand beside the keys in the
code. [README.md](README.md) explains them by example.
"""


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a config: `data.path`, say."""

    name: str
    type: str
    default: str
    meaning: str


@dataclasses.dataclass(frozen=True)
class Group:
    """Keys that belong together, and what there is to say about all of them."""

    title: str
    meaning: str
    keys: list[Key]


SET_BY_OTHER_KEYS = {"r_drop", "adversarial_epsilon", "static_embeddings", "languages", "target_lang_in"}
MODEL_KEYS = [
    Key(
        "model.type",
        "str",
        "the task's first",
        "which model learns the task; the types are those of the sections below",
    ),
    Key("model.from", "str | null", "null", "folder or Hub id of a checkpoint to start from"),
    Key("model.embeddings.path", "str", "", "word vectors in text format to start from"),
    Key(
        "model.embeddings.trainable",
        "true | false | both",
        "",
        "train them, keep them as they are, or keep them beside learned ones (both: text_classification)",
    ),
]


def groups() -> Iterator[Group]:
    """Yield the sections of a config, those of the tasks, and the sizes of each model, in the order of the page."""
    sections = Config.model_fields.items()
    yield Group("Run", "", [_key(name, field) for name, field in sections if not _is_section(field)])
    for name, field in sections:
        if _is_section(field):
            yield Group(name, field.description or "", section_keys(name, field.annotation))
    yield Group("training", "Our own, beside Seq2SeqTrainingArguments.", section_keys("training", OwnTraining))
    yield Group("model", "Of every model; `from` a checkpoint, it has that one's type and sizes.", MODEL_KEYS)
    for name, task in TASKS.items():
        if task.settings.model_fields:
            yield Group(name, f"Of the task {name}.", section_keys(name, task.settings))
    for name, spec in MODELS.items():
        yield Group(f"model, {name}", f"With model.type={name}, for the task {spec.task}.", model_keys(spec.config))


def section_keys(name: str, section: Any) -> list[Key]:
    """List the keys of a pydantic section, and of the sections in it."""
    keys: list[Key] = []
    for key, field in section.model_fields.items():
        path = f"{name}.{key}"
        keys += section_keys(path, field.annotation) if _is_section(field) else [_key(path, field)]
    return keys


def model_keys(config: type[PreTrainedConfig]) -> list[Key]:
    """List the fields of a model's config that its docstring explains, whatever class of its ancestors does so."""
    meanings = argument_meanings(config)
    return [
        Key(f"model.{field.name}", _type_name(field.type), _value_name(field.default), meanings[field.name])
        for field in dataclasses.fields(config)
        if meanings.get(field.name, "not used") != "not used" and field.name not in SET_BY_OTHER_KEYS
    ]


def argument_meanings(config: type[PreTrainedConfig]) -> dict[str, str]:
    """Read `name: meaning` and `name, name: meaning` from the Args of docstrings, those of subclasses last."""
    meanings: dict[str, str] = {}
    for ancestor in reversed(inspect.getmro(config)):
        if not issubclass(ancestor, PreTrainedConfig) or ancestor is PreTrainedConfig:
            continue
        arguments = re.search(r"^Args:\n((?: .*\n?|\n)*)", inspect.cleandoc(ancestor.__doc__ or ""), re.MULTILINE)
        # A meaning may go on in lines that are indented further.
        for names, meaning in re.findall(r"^ {4}([\w, ]+): ((?:.|\n {8})*)", arguments[1] if arguments else "", re.M):
            meanings |= dict.fromkeys(names.split(", "), " ".join(meaning.split()).rstrip("."))
    return meanings


def as_text() -> str:
    """Return all keys, one a line, for `--help`."""
    lines = []
    for group in groups():
        lines.append(f"{group.title}: {group.meaning}".rstrip(": "))
        lines += [f"  {key.name}: {key.meaning} ({key.type}; {_spoken(key.default)})" for key in group.keys]
    return "\n".join(lines)


def as_markdown() -> str:
    """Return the page configs/REFERENCE.md."""
    page = PAGE
    for group in groups():
        page += f"\n## {group.title}\n\n" + (f"{group.meaning}\n\n" if group.meaning else "")
        page += "| key | type | default | meaning |\n|---|---|---|---|\n"
        for key in group.keys:
            cells = (f"`{key.name}`", f"`{key.type}`", f"`{key.default}`" if key.default else "", key.meaning)
            page += f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"
    return page


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _key(name: str, field: FieldInfo) -> Key:
    if field.default_factory is not None:
        default = "the task's own"
    else:
        default = "" if field.is_required() else _value_name(field.default)
    limits = [
        f"{sign} {getattr(limit, kind)}" for limit in field.metadata for kind, sign in LIMITS if hasattr(limit, kind)
    ]
    type_name = ", ".join([_type_name(field.annotation), *limits])
    return Key(name, type_name, default, _with_choices(field.description or ""))


def _with_choices(meaning: str) -> str:
    """Put the names of tasks, tokenizer kinds and metrics where a description leaves room for them."""
    for room, table in (("{tasks}", TASKS), ("{kinds}", KINDS), ("{metrics}", METRICS)):
        meaning = meaning.replace(room, ", ".join(table))
    return meaning


def _type_name(annotation: Any) -> str:
    """Return `str | None` for that, and `error | skip` for a choice of these words."""
    if typing.get_origin(annotation) is typing.Annotated:  # whose limits are no part of the name
        return _type_name(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " | ".join(map(_type_name, typing.get_args(annotation)))
    if (container := typing.get_origin(annotation)) in (dict, list):
        return f"{container.__name__}[{', '.join(map(_type_name, typing.get_args(annotation)))}]"
    is_class = isinstance(annotation, type) and container is None
    name = annotation.__name__ if is_class else str(annotation)
    if choice := re.fullmatch(r"typing\.Literal\[(.*)\]", name):
        name = choice[1].replace("'", "").replace(", ", " | ")
    return re.sub(r"typing\.|pipeline\.\w+\.", "", name).replace("NoneType", "null").replace("None", "null")


def _value_name(value: Any) -> str:
    """Return a value as YAML writes it."""
    return value if isinstance(value, str) else json.dumps(value)


def _spoken(default: str) -> str:
    return f"default {default}" if default else "required"


if __name__ == "__main__":
    page = as_markdown()  # whole, before a file is touched
    Path("configs", "REFERENCE.md").write_text(page, encoding="utf-8")
