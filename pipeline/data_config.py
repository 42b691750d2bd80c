"""The section `data` of a config: which rows are read, what their columns mean, and how they are mixed."""

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from pipeline.errors import ConfigError, nearest, place_named
from pipeline.library_settings import MAX_TOKENS, check_path
from pipeline.section import Section
from pipeline.source import Source

NAME = re.compile(r"[\w-]{1,64}", re.ASCII)  # of corpora and sets
OF_A_MIX = ("weights", "temperature", "stages")
Refuse = Callable[..., ConfigError]  # makes an error of what is wrong, and of the key below `data` where it is
HeldOutSplit = Literal["validation", "test"]
HELD_OUT_SPLITS: tuple[HeldOutSplit, ...] = ("validation", "test")
ADDRESSES = ("hf://", "https://", "http://")
CODE = r"[A-Za-z0-9_-]{1,32}"  # of a language


class LanguageColumn(Section):
    column: str = Field(description="column with the code of each row's language")
    codes: list[Annotated[str, Field(pattern=f"^{CODE}$")]] = Field(
        [], description="those that there are; a new tokenizer finds them in the rows that it is trained on"
    )


def _refuse_repeats(names: list[str]) -> list[str]:
    repeated = [name for index, name in enumerate(names) if name in names[:index]]
    if repeated:
        raise ValueError(f"{repeated[0]} is named twice; leave one out")
    return names


SplitNames = str | Annotated[list[str], Field(min_length=1), AfterValidator(_refuse_repeats)]  # one after another
Language = Annotated[str, Field(pattern=f"^{CODE}$")] | LanguageColumn | None
Weights = dict[str, float]


class RowsConfig(Section):
    """Where rows are, and what their columns mean: the same keys in `data`, in a corpus and in a held-out set."""

    path: str = Field(
        "",
        min_length=0,  # as the default is written into run.yaml
        description="Hub id (owner/name), local folder or file, hf:// or https://, or a generated set: reversal; "
        "needed, but where corpora of a mix or addresses of splits say it",
    )
    subset: str | None = Field(None, description="configuration of a Hub data set that has several")
    revision: str | None = Field(None, description="branch, tag or commit of a Hub data set; one commit serves the run")
    source: str = Field(
        "source", description="column with the source text (or the only text); dots select nested columns"
    )
    target: str = Field(
        "target",
        description="column of the target text, or of the class; of a list of texts, training takes the first, and "
        "evaluation all",
    )
    source_lang: Language = Field(None, description="language of the sources: de, or {column: NAME} of each row")
    target_lang: Language = Field(
        None, description="likewise of the targets; a model is told into which language it is to translate"
    )
    source_tag: str | None = Field(
        None,
        pattern=r"^<[^\s<>]+>$",
        description="token in front of each source, such as <bt> for texts that were translated back",
    )
    streaming: bool = Field(False, description="read while training instead of downloading first")
    options: dict[str, Any] = Field(
        {},
        description="encoding of text files; format: label_first for lines that begin with their class; further "
        "arguments of the generated set or of load_dataset",
    )

    _check_path = field_validator("path")(check_path)

    @property
    def columns(self) -> "ColumnNames":
        return {"source": self.source, "target": self.target}

    @property
    def marks(self) -> "ColumnNames":
        """Say where the languages and the tag of each row are, as far as there are any."""
        given = {"source_lang": self.source_lang, "target_lang": self.target_lang, "source_tag": self.source_tag}
        return {
            name: mark.column if isinstance(mark, LanguageColumn) else Constant(mark)
            for name, mark in given.items()
            if mark is not None
        }


@dataclass(frozen=True)
class Constant:
    """The value of a column that is the same in all rows, and is not in the data."""

    value: str


ColumnNames = Mapping[str, str | Constant]  # agreed name -> name in the data, or what is the same in all rows


class OwnKeys(Section):
    """Keys that are taken from `data` where they are not given; they are written as they were given."""

    @model_serializer(mode="wrap")
    def _leave_out_the_others(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if name in self.model_fields_set}


class GivenKeys(OwnKeys, RowsConfig):
    """Those of the rows of a corpus or a set."""


SCRIPTS = re.compile(r"[A-Za-z_]+(\+[A-Za-z_]+)*")
ScriptShares = dict[str, Annotated[float, Field(gt=0, le=1)]]


class FiltersConfig(Section):
    """Training rows to leave out. A row is counted by the first rule that takes it, in this order."""

    drop_identical: bool = Field(False, description="take rows whose source is their target")
    max_word_length: int | None = Field(
        None, ge=1, description="take rows with a longer word on either side; characters between spaces"
    )
    min_script_share: dict[Literal["source", "target"], ScriptShares] | None = Field(
        None,
        min_length=1,
        description="take rows with a smaller share of letters of a Unicode script: {source: {Latin: 0.8}, target: "
        "{Cyrillic: 0.8}}; several count together as Han+Hiragana+Katakana",
    )
    match_digits: bool = Field(
        False,
        description="take rows whose sides have other numbers; 1,000 is 1.000, and digits of any script are digits",
    )
    max_length_ratio: float | None = Field(
        None,
        ge=1,
        allow_inf_nan=False,
        description="take rows whose longer side has more times the tokens of the other",
    )
    drop_held_out: bool = Field(
        False, description="take pairs (of a classifier: texts) of the validation and test sets of this run"
    )
    drop_duplicates: bool = Field(
        False,
        description="take all but the first of equal rows of a corpus, which are found before the training; not of a "
        "stream from the Hub or the web",
    )

    @field_validator("min_script_share")
    @classmethod
    def _check_scripts(cls, sides: dict[str, ScriptShares] | None) -> dict[str, ScriptShares] | None:
        """Refuse names that are not those of scripts."""
        for scripts in [name for shares in (sides or {}).values() for name in shares]:
            if not SCRIPTS.fullmatch(scripts) or not all(map(_is_script, scripts.split("+"))):
                raise ValueError(
                    f"{scripts} is not a script of Unicode; name one, as in Latin, or several, as in "
                    "Han+Hiragana+Katakana"
                )
        return sides

    @property
    def rules(self) -> dict[str, Any]:
        """The rules that are asked for, in their order, with their values."""
        return {name: value for name in FiltersConfig.model_fields if (value := getattr(self, name))}


def _is_script(name: str) -> bool:
    import regex  # here, as few configs need it

    try:
        return bool(regex.compile(rf"\p{{Script={name}}}"))
    except regex.error:
        return False


class CorpusFilters(OwnKeys, FiltersConfig):
    """Those of a corpus."""


class CorpusConfig(GivenKeys):
    train: SplitNames = Field(
        "train",
        description="split name, a file or glob below the folder (train-*.jsonl), or a file by hf:// or https://; of "
        "several in a list, one is read after the other",
    )
    filters: CorpusFilters = Field(
        CorpusFilters(), description="as data.filters; keys left out are those of data.filters"
    )
    rows: int | None = Field(None, ge=1, description="how many a stream has, for shares by size")


class SetConfig(GivenKeys):
    split: SplitNames | None = Field(None, description="as data.train; validation or test if left out")


class StageConfig(Section):
    weights: Weights = Field(description="share of each corpus, up to a common factor")
    until: str | None = Field(
        None, description="N rows, N passes of CORPUS (of the run), or N more rows or passes (of the stage)"
    )


HeldOut = SplitNames | dict[str, SplitNames | SetConfig] | None


class DataConfig(RowsConfig):
    train: SplitNames = Field(
        "train",
        description="split name, a file or glob below the folder (train-*.jsonl), or a file by hf:// or https://; of "
        "several in a list, one is read after the other",
    )
    validation: HeldOut = Field(
        "validation",
        description="as train; or several sets by name, each a split or with keys of its own (path, split, source, "
        "...); null trains without evaluation",
    )
    test: HeldOut = Field(None, description="as validation; read once, when training is over")
    mix: dict[str, CorpusConfig] | None = Field(
        None,
        description="corpora to train on, by name; each may have its own path, subset, revision, train, source, "
        "target, source_lang, target_lang, source_tag, streaming, options, filters and rows (of a stream, its size)",
    )
    weights: Weights | None = Field(None, description="of a mix: share of each corpus, up to a common factor")
    temperature: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="of a mix: T, where shares are as size^(1/T); without weights, temperature and stages by size",
    )
    stages: list[StageConfig] | None = Field(
        None,
        min_length=1,
        description="of a mix: one after another, each with its weights, and until (but the last): 2000000 rows, "
        "3 passes of CORPUS, 1 more pass of CORPUS",
    )
    target_lang_in: Literal["source", "decoder"] = Field(
        "source",
        description="of a new model: the target's language stands in front of the source, or first in the decoder",
    )
    filters: FiltersConfig = FiltersConfig()
    max_source_length: int = Field(128, ge=2, le=MAX_TOKENS, description="tokens; a longer training row is a bad row")
    max_target_length: int = Field(
        128, ge=2, le=MAX_TOKENS, description="tokens; likewise, and the bound when generating"
    )
    on_bad_row: Literal["error", "skip"] = Field(
        "error", description="what to do with a bad training row: null, not text, empty, too long or undecodable"
    )
    max_bad_rows: int | None = Field(
        1000, ge=0, description="rows to skip in one pass over the data at most; null: no bound"
    )
    batch_tokens: int | None = Field(
        None,
        ge=1,
        description="padded source and target tokens a batch and device; null: per_device_train_batch_size rows",
    )
    packing: bool = Field(
        False,
        description="batches without padding, of batch_tokens tokens in one sequence where rows are masked from each "
        "other; for GPUs, as a CPU is faster with rows of like lengths",
    )
    shuffle_window: int = Field(10_000, ge=1, description="rows of a lane, shuffled and grouped by length at a time")
    lanes: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="shares of the training rows that are prepared by themselves; a run has the same batches on any "
        "number of processes; those that it begins with when left out",
    )
    hub_patience: float = Field(600, ge=0, description="seconds to wait for a Hub that fails for a while")
    worker_timeout: int = Field(1200, ge=1, description="seconds to wait for a window from a loader worker")

    @property
    def corpora(self) -> dict[str, "DataConfig"]:
        """The training data by name, each with its `train` and without a mix; those that no stage uses are left out.

        Without a mix there is one, without a name.
        """
        if self.mix is None:
            return {"": self}
        unused = {name for name in self.mix if self._most(name) == 0}
        return {name: self._with(corpus) for name, corpus in self.mix.items() if name not in unused}

    def _most(self, name: str) -> float:
        """Return the greatest weight that a corpus has."""
        given = [self.weights] if self.stages is None else [stage.weights for stage in self.stages]
        return max(1.0 if weights is None else weights[name] for weights in given)

    def held_out(self, split: HeldOutSplit) -> dict[str, "DataConfig"]:
        """The sets of validation or test by name, each with the name of its split; one set has no name."""
        sets = getattr(self, split)
        if sets is None:
            return {}
        if not isinstance(sets, dict):
            return {"": self}
        named = {
            name: value if isinstance(value, SetConfig) else SetConfig(split=value) for name, value in sets.items()
        }
        return {name: self._with(value, **{split: value.split or split}) for name, value in named.items()}

    def _with(self, rows: RowsConfig, **changes: Any) -> "DataConfig":
        """Return these data with the keys that a corpus or set gives."""
        given = {name: getattr(rows, name) for name in rows.model_fields_set & DataConfig.model_fields.keys()}
        if isinstance(own := given.get("filters"), CorpusFilters):
            given["filters"] = self.filters.model_copy(
                update={name: getattr(own, name) for name in own.model_fields_set}
            )
        alone = {"mix": None, "weights": None, "temperature": None, "stages": None}
        return self.model_copy(update={**alone, **given, **changes})

    @property
    def places(self) -> dict[str, tuple["DataConfig", SplitNames]]:
        """All that is read: the place below `data` that names it -> where it is, and the name of its split there.

        train, or mix.CORPUS; validation, or validation.SET; test likewise.
        """
        training = {place_of("train", name): (data, data.train) for name, data in self.corpora.items()}
        held_out = {
            place_of(split, name): (data, getattr(data, split))
            for split in HELD_OUT_SPLITS
            for name, data in self.held_out(split).items()
        }
        return training | held_out

    def pinned(self, revisions: Mapping[str, str]) -> "DataConfig":
        """Return these data at the commits that are known, by `places`; the others as they are."""

        def pin(place: str, rows: Any) -> Any:
            known = revisions.get(place)
            if known is None:
                return rows
            rows = rows if isinstance(rows, RowsConfig) else SetConfig(split=rows)
            return rows.model_copy(update={"revision": known} | _pin_names(rows, known))

        changes: dict[str, Any] = {}
        for key in ("mix", *HELD_OUT_SPLITS):
            named = getattr(self, key)
            if isinstance(named, dict):
                changes[key] = {name: pin(f"{key}.{name}", rows) for name, rows in named.items()}
        own = {key: revisions[key] for key in ("train", *HELD_OUT_SPLITS) if key in revisions}
        for key, commit in own.items():
            changes |= {name: value for name, value in _pin_names(self, commit).items() if name == key}
        # A commit of `path` rather than that of an address.
        of_path = [own[key] for key in own if not any(map(is_address, split_names(getattr(self, key))))]
        return self.model_copy(update=changes | ({"revision": of_path[0]} if of_path else {}))


def is_address(name: str) -> bool:
    """Tell whether a path or a split is named by an address of the Hub or the web."""
    return name.startswith(ADDRESSES)


def split_names(split: SplitNames) -> list[str]:
    """Return the names in the value of a split: one or several."""
    return [split] if isinstance(split, str) else split


def write_split(split: SplitNames) -> str:
    """Write the value of a split for a reader."""
    return ", ".join(split_names(split))


def _pin_names(rows: RowsConfig, commit: str) -> dict[str, Any]:
    """Return the keys of splits that are named by addresses of the Hub, at a commit."""
    pinned: dict[str, Any] = {}
    for key in ("train", "split", *HELD_OUT_SPLITS):
        split = getattr(rows, key, None)
        if isinstance(split, str | list) and any(map(is_address, split_names(split))):
            names = [_pin_name(name, commit) for name in split_names(split)]
            pinned[key] = names[0] if isinstance(split, str) else names
    return pinned


def _pin_name(name: str, commit: str) -> str:
    """Write the commit into an address of the Hub; others are returned as they are."""
    from huggingface_hub import constants, parse_hf_uri
    from huggingface_hub.errors import HfUriError

    address, bracket, part = name.partition("[")
    try:
        uri = parse_hf_uri(address, constants.ENDPOINT)
    except HfUriError:
        return name
    return replace(uri, revision=commit).to_uri() + bracket + part


def errors_of(place: str) -> AbstractContextManager[None]:
    """Name a corpus or set in errors; what is alone has a key of its own there."""
    return place_named(f"data.{place}") if "." in place else nullcontext()


def place_of(split: str, name: str) -> str:
    """Return the place of a corpus or set, or that of the split where there is one without a name."""
    return f"{'mix' if split == 'train' else split}.{name}" if name else split


@dataclass(frozen=True)
class Until:
    """Where a stage ends.

    Attributes:
        count: of rows that were trained on, or of passes over a corpus; over all lanes.
        corpus: whose passes are counted; None counts rows of all corpora.
        is_more: counted from the beginning of the stage on, not from that of the run.
    """

    count: int
    corpus: str | None = None
    is_more: bool = False

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read `5000 rows`, `2 passes of clean`, `1 more pass of clean`; None where it is something else."""
        match = re.fullmatch(r"(\d{1,15}) (more )?(?:rows?|pass(?:es)? of (\S+))", " ".join(text.split()))
        if match is None or int(match[1]) == 0:
            return None
        return cls(int(match[1]), match[3], match[2] is not None)


def language_codes(language: Language) -> list[str]:
    """Return the languages that a key names."""
    if isinstance(language, LanguageColumn):
        return language.codes
    return [] if language is None else [language]


def check_data(data: DataConfig, source: Source) -> None:
    """Check what the keys of `data` say together.

    Raises:
        ConfigError: for the first that cannot be.
    """

    def refuse(problem: str, *location: str) -> ConfigError:
        return ConfigError(f"{source.place(('data', *location))}{'.'.join(('data', *location))}{problem}")

    for key in ("mix", *HELD_OUT_SPLITS):
        _check_names(getattr(data, key), refuse, key)
    if data.mix is None and (given := [key for key in OF_A_MIX if getattr(data, key) is not None]):
        raise refuse(": there is no data.mix whose shares it could say; leave it out", given[0])
    if data.mix is not None:
        _check_mix(data, data.mix, refuse)
    for place, (rows, split) in data.places.items():
        if not rows.path and not all(map(is_address, split_names(split))):
            raise _explain_no_path(place, split, refuse)


def _check_names(named: Any, refuse: Refuse, key: str) -> None:
    if not isinstance(named, dict):
        return
    if not named:
        raise refuse(": there is nothing in it; leave it out", key)
    for name in named:
        if not NAME.fullmatch(name):
            raise refuse(": give it a name of letters, digits, - and _, as it becomes part of others", key, name)


def _explain_no_path(place: str, split: SplitNames, refuse: Refuse) -> ConfigError:
    if place == "train":
        return refuse(" is missing; give it in the file or as data.path=...", "path")
    if "." in place:
        return refuse(" is missing, and there is no data.path in its place", *place.split("."), "path")
    return refuse(
        f": there is no data.path that could have a split {write_split(split)!r}; name sets, as in {place}: "
        "{{news: {{path: FOLDER}}, or give null",
        place,
    )


def _check_mix(data: DataConfig, mix: Mapping[str, CorpusConfig], refuse: Refuse) -> None:
    given = [key for key in OF_A_MIX if getattr(data, key) is not None]
    if len(given) > 1:
        raise refuse(f": data.{given[0]} says the shares already; leave one of them out", given[1])
    if data.weights is not None:
        _check_weights(data.weights, mix, refuse, "weights")
    stages = data.stages or []
    for number, stage in enumerate(stages):
        location = ("stages", str(number))
        _check_weights(stage.weights, mix, refuse, *location, "weights")
        if stage is not stages[-1]:
            _check_until(stage, mix, refuse, *location, "until")
        elif stage.until is not None:
            raise refuse(": the last stage goes on to the end of the training; leave it out", *location, "until")


def _check_until(stage: StageConfig, mix: Mapping[str, CorpusConfig], refuse: Refuse, *location: str) -> None:
    until = Until.parse(stage.until or "")
    if until is None:
        raise refuse(
            f": say where the stage ends, as in 2000000 rows, or 2 passes of {min(mix)} (given: {stage.until!r})",
            *location,
        )
    if until.corpus is not None and until.corpus not in mix:
        raise refuse(f": there is no corpus {until.corpus!r}{nearest(until.corpus, mix)}", *location)
    if until.corpus is not None and not stage.weights[until.corpus]:
        raise refuse(f": {until.corpus} has no weight in this stage, so it would never end", *location)


def _check_weights(weights: Weights, mix: Mapping[str, CorpusConfig], refuse: Refuse, *location: str) -> None:
    for name in weights:
        if name not in mix:
            raise refuse(f": there is no corpus {name!r}{nearest(name, mix)}", *location)
    for name in mix:
        if name not in weights:
            raise refuse(f": {name} is missing; 0 leaves a corpus out", *location)
        if weights[name] < 0:
            raise refuse(f": a weight is 0 or more (given: {weights[name]:g})", *location, name)
    if not any(weights.values()):
        raise refuse(": at least one corpus must have a weight", *location)
