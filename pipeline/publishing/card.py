"""The model card: what was trained, on what, from what, with which scores, and how to use it.

The words and the order of a card are in `card.md.jinja`; what differs by task, in the task's `card`.
"""

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Template
from transformers import PreTrainedModel, TrainerState

from pipeline.config import Config
from pipeline.data.addresses import find_repository
from pipeline.data.filters import READ
from pipeline.data_config import HELD_OUT_SPLITS, DataConfig, HeldOutSplit, language_codes, write_split
from pipeline.languages import hub_code, known_code
from pipeline.tasks.base import Task
from pipeline.tasks.row_languages import target_tag

TEMPLATE = Path(__file__).with_name("card.md.jinja")
USE_TEMPLATE = Path(__file__).with_name("use.md.jinja")
# A section that is written when a model is published, as it depends on its name and its form.
JSON_STRING = r'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-f]{4}))*"'
USE = re.compile(rf"## Use\n\n<!-- use: ({JSON_STRING});[^\n]*-->\n.*?^<!-- end of use -->$", re.DOTALL | re.MULTILINE)
USE_UNMARKED = re.compile(r"## Use\n\n```python\n.*?[Rr]ead it first\.", re.DOTALL)  # as version 0.1 wrote it
TEXT_TO_TEXT = "text2text-generation"  # a task in the results of a card, though no filter of the Hub any more


@dataclass(frozen=True)
class Loading:
    """How a published model is loaded.

    Attributes:
        model_class: name of the class that the task's Auto class makes of it.
        has_code: whether that class is code beside the weights.
        has_pipeline: whether the code of its pipeline is.
        is_converted: whether it is transformers' own class, with weights of ours, for transformers 4 and 5.
        languages: that it is told to translate into, where it has tags for them.
        target_lang_in: where such a tag stands: "source" or "decoder".
    """

    model_class: str
    has_code: bool = False
    has_pipeline: bool = False
    is_converted: bool = False
    languages: tuple[str, ...] = ()
    target_lang_in: str | None = None


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
    loading = Loading(
        type(model).__name__,
        has_code,
        has_pipeline=has_code and bool(task.card.pipeline_use),
        languages=task.languages.tagged,
        target_lang_in="decoder" if task.languages.num_forced else "source",
    )
    steps = f"{state.global_step:,}" + (f" of {state.max_steps:,}" if state.global_step < state.max_steps else "")
    card = ModelCard.from_template(
        _metadata(config, task.card.pipeline_tag, name, scores, task.languages.tagged),
        template_path=str(TEMPLATE),
        name=escape(name),
        model=task.card.model,
        pictures=task.pictures,
        num_parameters=f"{model.num_parameters():,}",
        base=base and _as_code(base),
        steps=steps,
        data={key: _as_code(str(value)) for key, value in config.data.model_dump().items() if value is not None},
        corpora=_describe_corpora(config, task, scores.get("training", {}).get("corpora", {})),
        filters=_describe_filters(scores.get("training", {}).get("filters", {})),
        scores=_score_rows(scores),
        remarks=task.remarks(scores),
        use=render_use(task, loading, name, example),
        limits=_fill_in(task.card.limits, config),
        license=config.hub.license and _as_code(config.hub.license),
        phases=[escape(phase) for phase in phases],
        configuration=config.to_yaml(),
        fence="`" * max(3, _longest_run(config.to_yaml()) + 1),
    )
    return f"{card}\n"


def render_use(task: Task | type[Task], loading: Loading, name: str, example: str = "...") -> str:
    """Return the section on the use of a model, between marks by which `put_use` finds it.

    Args:
        name: of the model on the Hub.
        example: a source text, which the section's first line keeps for the next time.
    """
    strings = {"name": _in_string(name), "example": _in_string(example)} | _tell_language(loading)
    trust = ", trust_remote_code=True"
    return Template(USE_TEMPLATE.read_text(encoding="utf-8")).render(
        vars(loading),
        example=_in_comment(example),
        tags=", ".join(_as_code(code) for code in loading.languages),
        auto_class=task.auto_class.__name__,
        use=task.card.use.format(**strings, trust=trust if loading.has_code else ""),
        pipeline_use=task.card.pipeline_use.format(**strings, trust=trust),
        pipeline_call=_as_code(f'pipeline("translation", model="{strings["name"]}")'),
    )


def _tell_language(loading: Loading) -> dict[str, str]:
    """Return the parts of the code of use that say what to translate into: the first language, as an example."""
    parts = dict.fromkeys(("mark", "tokenizer_option", "generate_option", "pipeline_option"), "")
    if not loading.languages:
        return parts
    code = _in_string(loading.languages[0])
    parts["pipeline_option"] = f', tgt_lang="{code}"'
    if loading.target_lang_in == "decoder":
        return parts | {"generate_option": f', forced_bos_token_id=model.config.languages["{code}"]'}
    # Only so is a tag that is written in a text the tag.
    return parts | {"mark": target_tag(code), "tokenizer_option": ", split_special_tokens=False"}


def says_use(card: str) -> bool:
    """Tell whether a card has a section on the use of its model that `render_use` wrote."""
    return USE.search(card) is not None


def put_use(card: str, task: Task | type[Task], loading: Loading, name: str) -> str:
    """Return a card that says how a model is loaded by this name: in the place where it said so before, or at its end.

    All that stands outside of that section stays as it is.
    """
    if before := USE.search(card):
        use = render_use(task, loading, name, json.loads(before[1]))
    else:
        before, use = USE_UNMARKED.search(card), render_use(task, loading, name)
    if before is None:
        return f"{card.rstrip()}\n\n{use}\n"
    return card[: before.start()] + use + card[before.end() :]


def _fill_in(text: str, config: Config) -> str:
    """Return a text of a task with names of columns, and other values of its keys, in their places."""
    task_keys = config.task_settings.model_dump() if config.task_settings else {}
    values = {
        key: ", ".join(_as_code(str(item)) for item in value) if isinstance(value, list) else _in_code(str(value))
        for key, value in (config.data.model_dump() | task_keys).items()
    }
    return text.format(**values)


def _metadata(
    config: Config, pipeline_tag: str, name: str, scores: dict[str, dict[str, Any]], told: Sequence[str]
) -> ModelCardData:
    base = config.model.get("from")
    languages = _languages(config, pipeline_tag, told)
    repositories = [find_repository(corpus, corpus.train) for corpus in config.data.corpora.values()]
    codes = [*dict.fromkeys(map(hub_code, languages))]
    # From a language to itself, for which the Hub has no filter: https://github.com/huggingface/huggingface.js/pull/1590
    is_rewriting = pipeline_tag == "translation" and len(codes) == 1
    return ModelCardData(
        language=codes or None,
        language_bcp47=[tag for tag in languages if "-" in tag] or None,
        library_name="transformers",
        license=config.hub.license,
        base_model=base if base and not Path(base).exists() else None,
        datasets=[*dict.fromkeys(found[0] for found in repositories if found)] or None,
        pipeline_tag=None if is_rewriting else pipeline_tag,
        tags=["teacher-forcing", config.task],
        model_name=name,
        eval_results=_evaluation_results(config, TEXT_TO_TEXT if is_rewriting else pipeline_tag, scores) or None,
    )


def _languages(config: Config, pipeline_tag: str, told: Sequence[str]) -> list[str]:
    """Return what `hub.language` says, or else what the config shows of both sides of a translation.

    Args:
        told: target languages that the model has tags for; those in a column are not in the config.
    """
    if config.hub.language is not None:
        return config.hub.language
    if pipeline_tag != "translation":
        return []
    data = config.data
    keys = [key for rows, _ in data.places.values() for key in (rows.source_lang, rows.target_lang)]
    tags = [*(code for key in keys for code in language_codes(key)), *told]
    if tags:
        return [*dict.fromkeys(code for tag in tags if (code := known_code(tag)))]
    columns = (known_code(name.split(".")[-1]) for name in (data.source, data.target))
    codes = [code for code in columns if code]
    return codes if len({*codes}) == 2 else []  # one alone may be another word, such as id


def _score_rows(scores: dict[str, dict[str, Any]]) -> list[tuple[str, str, str]]:
    return [
        (escape(split), escape(metric), f"{value:.4f}" if isinstance(value, float) else escape(str(value)))
        for split, values in scores.items()
        for metric, value in values.items()
        if not isinstance(value, dict)
    ]


def _describe_corpora(config: Config, task: Task, counts: dict[str, dict[str, float]]) -> list[dict[str, str]]:
    """Return what the card says of each corpus: what it is, and of a mixture also how much of it was trained on."""
    corpora = []
    for name, data in config.data.corpora.items():
        revision = f", at revision {_as_code(data.revision)}" if data.revision else ""
        learned = _fill_in(task.card.data, config.with_data(data))
        path = f"{_as_code(data.path)}, split " if data.path else ""
        what = f"{path}{_as_code(write_split(data.train))}, {learned}{revision}"
        corpora.append(
            {"name": escape(name), "what": what} | {key: f"{n:,}" for key, n in counts.get(name, {}).items()}
        )
    return corpora


def _describe_filters(filters: dict[str, dict[str, int]]) -> list[tuple[str, str, str, str]]:
    """Return corpus, rows read, rule, and rows that it took with their share, for each rule of each corpus."""
    return [
        (escape(name), f"{counts[READ]:,}", _as_code(rule), f"{number:,} ({number / counts[READ]:.2%})")
        for name, counts in filters.items()
        for rule, number in counts.items()
        if rule != READ
    ]


def _evaluation_results(config: Config, pipeline_tag: str, scores: dict[str, dict[str, Any]]) -> list[EvalResult]:
    """Return the scores as results on data sets; of several sets those of each, as their mean is of none."""
    return [
        EvalResult(
            task_type=pipeline_tag,
            dataset_type=_name_set(data, split),
            dataset_name=f"{_name_set(data, split)} ({name})" if name else _name_set(data, split),
            dataset_config=name or None,  # or the results of two sets from one path would be taken for one's
            dataset_split=split,
            dataset_revision=data.revision,
            metric_type=metric.removeprefix(f"{name}_"),
            metric_value=value,
        )
        for split in HELD_OUT_SPLITS
        for name, data in config.data.held_out(split).items()
        for metric, value in scores.get(split, {}).items()
        if not isinstance(value, str) and name == _set_of(metric, config.data.held_out(split))
    ]


def _name_set(data: DataConfig, split: HeldOutSplit) -> str:
    return data.path or write_split(getattr(data, split))


def _set_of(metric: str, sets: Collection[str]) -> str | None:
    """Return the set that a score is of; of `a` and `a_b`, the score `a_b_loss` is that of the second."""
    return max((name for name in sets if not name or metric.startswith(f"{name}_")), key=len, default=None)


# Names and samples come from data and settings of anybody. In a card they are shown, and never are Markdown, HTML or
# code themselves. Each function is for one place.


def _one_line(text: str) -> str:
    """Return a text without line breaks, which `\\r` and others are too, and without characters that cannot be seen."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def escape(text: str) -> str:
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


def _in_comment(text: str) -> str:
    """Return a text as a string of JSON, for an HTML comment, which no text can end so."""
    return json.dumps(text).translate({ord(character): f"\\u{ord(character):04x}" for character in "<->"})


def _longest_run(text: str) -> int:
    """Count the backticks of the longest row of them."""
    return max(map(len, re.findall("`+", text)), default=0)
