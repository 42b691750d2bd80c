"""What a command has to say when its work is done: to people as text, to machines as JSON."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import TeacherForcingError


@dataclass(frozen=True)
class Report:
    """The end of a command.

    Attributes:
        document: names -> plain values, what `--json` prints; README.md of the package says which names.
        text: what is printed without `--json`.
        error: what is wrong with what was found, to be raised behind the report.
    """

    document: Mapping[str, Any]
    text: str
    error: TeacherForcingError | None = None

    def as_json(self) -> str:
        """Return the document as JSON that every reader takes: it has no NaN and no infinity, which become null."""
        return json.dumps(_finite(self.document), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
