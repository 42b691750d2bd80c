"""All data of a config, corpus by corpus and set by set."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from pipeline.config import Config
from pipeline.inspection.rows import Source, open_source
from pipeline.inspection.series import SeriesReport, inspect_series
from pipeline.inspection.texts import Survey, TextReport
from pipeline.setup.model_factory import find_pretrained, given_settings, make_model_config
from pipeline.setup.tokenizer_setup import prepare_tokenizer, typical_rows
from pipeline.tasks.base import Task
from pipeline.tasks.registry import get_task
from pipeline.tasks.trained_model import load_model_config


@dataclass(frozen=True)
class Inspection:
    """What was found in each corpus and held-out set, by the kind of the data.

    Attributes:
        tokenizer: by which tokens are counted; None where there are no texts.
    """

    task: str
    tokenizer: str | None
    texts: list[TextReport]
    series: list[SeriesReport]


def inspect(config: Config, limit: int | None = None) -> Inspection:
    """Look at all data of a config.

    Args:
        limit: rows of each corpus and set that are looked at, the first ones; None for all, or `STREAM_ROWS` of a
            stream. A tokenizer that is not there yet is trained on these rows.

    Raises:
        ConfigError, DataError: for what cannot be read at all, as in training.
    """
    sources = [open_source(config, place, limit) for place in config.data.places]
    if not get_task(config.task).text_columns:
        return Inspection(config.task, None, [], [inspect_series(config, source) for source in sources])
    task, tokenizer = _make_task(config, sources)
    held_out = [Survey(config, task, source) for source in sources if not source.is_training]
    for survey in held_out:
        survey.read()
    training = [Survey(config, task, source, held_out) for source in sources if source.is_training]
    for survey in training:
        survey.read()
    known = {name for survey in training for name in survey.classes}
    return Inspection(config.task, tokenizer, [survey.report(known) for survey in training + held_out], [])


def _make_task(config: Config, sources: Sequence[Source]) -> tuple[Task, str]:
    """Make the task as training does, without its model; say which tokenizer it has."""
    task_class = get_task(config.task)
    training = {source.name: source for source in sources if source.is_training}
    readers = {name: source.read for name, source in training.items()}
    rows = typical_rows(config, {name: source.rows for name, source in training.items()}, readers)
    pretrained = find_pretrained(config)
    path = config.tokenizer.path or pretrained
    with tempfile.TemporaryDirectory() as folder:  # where training leaves a tokenizer that it makes
        elsewhere = config.model_copy(update={"training": config.training | {"output_dir": folder}})
        tokenizer = prepare_tokenizer(elsewhere, rows, path)
    assert tokenizer is not None  # as there are texts
    named = str(path) if path else f"{config.tokenizer.kind}, trained on the rows that were looked at"
    all_rows = chain.from_iterable(read() for read in readers.values())
    settings = task_class.model_settings(_as_known(config), all_rows)
    if pretrained is None:
        model_config = make_model_config(config, tokenizer, settings | given_settings(config))
    else:
        model_config = load_model_config(pretrained)
        for name, value in settings.items():
            setattr(model_config, name, value)
    return task_class.from_model(tokenizer, model_config, config), f"{named}: {len(tokenizer):,} tokens"


def _as_known(config: Config) -> Config:
    """Return the config with streams as data that can be read to their end, as they are up to the limit."""
    known = {"streaming": False}
    mix = config.data.mix and {name: corpus.model_copy(update=known) for name, corpus in config.data.mix.items()}
    return config.with_data(config.data.model_copy(update={**known, "mix": mix}))
