"""Plain values of a config, from a YAML file and the command line, and where each was given.

What YAML can do beyond that is refused here, before any of it is built: tags, deep nesting, aliases that unfold to
gigabytes. So whoever reads the values meets only text, finite sizes and dicts whose keys are text.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent
from ruamel.yaml.nodes import MappingNode

from pipeline.errors import ConfigError

Location = tuple[str, ...]  # ("data", "path")

# No key of a config may hold a secret: run.yaml, which has all of them, is published.
SECRET_KEYS = {
    *("token", "hub_token", "push_to_hub_token", "use_auth_token", "auth_token", "hf_token", "access_token"),
    *("api_key", "access_key", "secret_key", "secret", "password", "passwd"),
}
NO_SECRETS = (
    "a config is saved and published, so it holds no tokens or passwords; set HF_TOKEN in the environment, or log in "
    "with `hf auth login`, and remove this key"
)
MAX_BYTES = 200_000  # of a file
MAX_DEPTH = 20
MAX_VALUES = 100_000  # with aliases unfolded
MAX_INTEGER = 2**63  # what torch and numpy count with


@dataclasses.dataclass(frozen=True)
class Source:
    """Plain values of a config, and where each was given, for error messages.

    Attributes:
        values: sections, as read from YAML.
        path: the file, where they come from one.
        text: what it holds.
        origins: location of a key -> the override that gave it.
        moved: location of a key -> the one under which an older version knew it, and it was given.
    """

    values: dict[str, Any]
    path: Path | None = None
    text: str = ""
    origins: dict[Location, str] = dataclasses.field(default_factory=dict)
    moved: dict[Location, Location] = dataclasses.field(default_factory=dict)

    def place(self, location: Location) -> str:
        """Tell where a key was given, `FILE:LINE: ` or `override ...: `; nothing where there is no file."""
        location = self.moved.get(location, location)
        for length in range(len(location), 0, -1):  # the key itself, or what it lies in
            if location[:length] in self.origins:
                return f"{self.origins[location[:length]]}: "
        return f"{self.path}{_line(self.text, location)}: " if self.path else ""


def read_source(path: str | Path, overrides: Sequence[str] = ()) -> Source:
    """Read a YAML file and apply `section.key=value` overrides, whose values are YAML too.

    Raises:
        ConfigError: for a file that cannot be read, YAML that is not plain values, or an override that is not of this
            form.
    """
    path = Path(path)
    text = _read(path)
    values = _parse(text, str(path))
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: the file must hold sections such as `data:`, not a {type(values).__name__}")
    origins: dict[Location, str] = {}
    for override in overrides:
        _apply(override, values, origins)
    return Source(values, path, text, origins)


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Turn `key=value` pairs, with dots for nested keys and values in YAML, into a dict."""
    values: dict[str, Any] = {}
    for override in overrides:
        _apply(override, values, {})
    return values


def plain(value: Any, place: str, location: Location = ()) -> Any:
    """Copy plain values: dicts with keys of text, lists, texts, numbers, truth values and None.

    Args:
        place: file or override, for a message.
        location: of the value.

    Raises:
        ConfigError: for anything else, for text that cannot be written to a file, for a number that no library takes,
            and for more, or more deeply nested, values than a config has.
    """
    return _Copier(place).copy(value, location)


class _Copier:
    """Copies plain values and counts them; an alias is copied as often as it stands there."""

    def __init__(self, place: str):
        self.place, self.count = place, 0

    def copy(self, value: Any, location: Location) -> Any:
        self.count += 1
        if self.count > MAX_VALUES:
            raise ConfigError(f"{self.place}: more than {MAX_VALUES} values; a config does not need so many")
        if len(location) > MAX_DEPTH:
            raise ConfigError(f"{self.place}: {_name(location[:3])}... is nested more than {MAX_DEPTH} levels deep")
        if isinstance(value, dict):
            return {self._key(key, location): self.copy(item, (*location, str(key))) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.copy(item, (*location, str(index))) for index, item in enumerate(value)]
        if not (value is None or isinstance(value, str | int | float)):
            self._refuse(location, f"is a {type(value).__name__}; write text in quotes")
        if isinstance(value, str) and (problem := text_problem(value)):
            self._refuse(location, problem)
        if isinstance(value, float) and not math.isfinite(value):
            self._refuse(location, f"is {value}; give a finite number")
        if isinstance(value, int) and abs(value) >= MAX_INTEGER:
            self._refuse(location, "is a number of more than 63 bits; give a smaller one")
        return value

    def _key(self, key: Any, location: Location) -> str:
        if not isinstance(key, str):
            self._refuse(location, f"has the key {key!r}; write it in quotes")
        if problem := text_problem(key):
            self._refuse((*location, key), problem)
        return key

    def _refuse(self, location: Location, problem: str) -> None:
        raise ConfigError(f"{self.place}: {_name(location) or 'the file'} {problem}")


def _name(location: Location) -> str:
    return ".".join(location)


def text_problem(text: str) -> str | None:
    """Say why a text can be neither the name of a file nor written to one; None where it can."""
    if "\0" in text:
        return "holds a NUL character; remove it"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "is invalid UTF-8; fix its encoding"
    return None


def _read(path: Path) -> str:
    if "\0" in str(path):
        raise ConfigError(f"{str(path)!r}: no file's name holds a NUL character")
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such config file") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; name a YAML file") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path}: more than {MAX_BYTES:,} bytes; name a YAML file, which is short")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not valid YAML: invalid UTF-8; save the file as UTF-8") from error


def _apply(override: str, values: dict, origins: dict[Location, str]) -> None:
    place = f"override {override!r}"
    key, equals, text = override.partition("=")
    location = tuple(key.split("."))
    if location[-1].lower() in SECRET_KEYS:
        raise ConfigError(f"override {key}=...: {NO_SECRETS}")
    if not equals or not all(location):
        raise ConfigError(f"{place}: write section.key=value")
    if problem := text_problem(override):
        raise ConfigError(f"{place} {problem}")
    if not text.strip():
        raise ConfigError(f"{place}: there is no value; write {key}=null to unset the key")
    if len(location) > MAX_DEPTH:
        raise ConfigError(f"{place}: more than {MAX_DEPTH} keys, each in the one before")
    value = _parse(text, place, location)
    for name in location[:-1]:
        if values.get(name) is None:
            values[name] = {}
        values = values[name]
        if not isinstance(values, dict):
            raise ConfigError(f"{place}: {name} holds a value, not further keys")
    values[location[-1]] = value
    origins[location] = place


# ---- YAML


def _yaml() -> YAML:
    return YAML(typ="safe", pure=True)


def _parse(text: str, place: str, location: Location = ()) -> Any:
    """Read YAML 1.2 (1e-4 is a number, yes is a word) as plain values."""
    try:
        _check_events(text, place)
        values = _yaml().load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ConfigError(f"{_at(place, text, mark)}not valid YAML: {error.problem or error.context}") from error
    except (YAMLError, ValueError) as error:  # ValueError: a number of 5,000 digits, a 13th month, \U00110000
        raise ConfigError(f"{place}: not valid YAML: {error}") from error
    return plain(values, place, location)


def _check_events(text: str, place: str) -> None:
    """Refuse tags and deep nesting while they are only read: what is built of them is built by recursion."""
    depth = 0
    for event in _yaml().parse(text):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ConfigError(
                f"{_at(place, text, event.start_mark)}nested more than {MAX_DEPTH} levels deep; a config is not"
            )
        if (tag := getattr(event, "tag", None)) is not None:
            raise ConfigError(f"{_at(place, text, event.start_mark)}not plain YAML: remove the tag {tag}")


def _at(place: str, text: str, mark: Any) -> str:
    """Return the place of a mark, with its line where there are several."""
    return f"{place}:{mark.line + 1}: " if mark is not None and "\n" in text else f"{place}: "


def _line(text: str, location: Location) -> str:
    """Return `:LINE` of the key, or of the nearest one above it; reads the text again, as only errors need it."""
    node, line = _yaml().compose(text), ""
    for name in location:
        pairs = node.value if isinstance(node, MappingNode) else []
        found = [(key, value) for key, value in pairs if key.value == name]
        if not found:
            break
        line, node = f":{found[-1][0].start_mark.line + 1}", found[-1][1]
    return line
