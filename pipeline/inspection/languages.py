"""The languages of a sample of rows, as the optional package py3langid takes them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.data_config import DataConfig
from pipeline.inspection.rows import Example, Found, Row, Sample
from pipeline.languages import known_code

SAMPLED_ROWS = 10_000  # whose language is identified
READ_LENGTH = 1000  # characters of a text


@dataclass(frozen=True)
class SideLanguages:
    """The languages of a side, as py3langid takes them.

    Attributes:
        expected: the code that the config gives, or else that of most rows.
        is_given: whether the config gives it.
        counts: code -> rows, the most frequent first.
        other: rows in another language than is expected of them.
    """

    expected: str
    is_given: bool
    counts: dict[str, int]
    other: Found


def describe_languages(
    rows: Sequence[tuple[int, Example, Row]], names: Sequence[str], data: DataConfig
) -> dict[str, SideLanguages] | None:
    """Identify the language of each text; None where the package is not installed.

    Args:
        rows: number, example and columns; texts have `READ_LENGTH` characters at most.
        names: of the columns with texts.
        data: which may say the language: by a key, or as the name of a column.
    """
    try:
        import py3langid  # an extra
    except ImportError:
        return None
    if not rows:
        return {}
    described = {}
    for name in names:
        taken = [py3langid.classify(row[name])[0] for *_, row in rows]
        described[name] = _compare(name, rows, taken, known_code(getattr(data, name)))
    return described


def _compare(
    name: str, rows: Sequence[tuple[int, Example, Row]], taken: Sequence[str], column: str | None
) -> SideLanguages:
    counts = Counter(taken)
    given = [_language_given(row, name) or column for *_, row in rows]
    of_most = counts.most_common(1)[0][0]
    other = Sample()
    for (number, example, _), code, language in zip(rows, given, taken, strict=True):
        if language != (code or of_most):
            other.add((number, replace(example, reason=f"{name} is taken for {language}")))
    known = {code for code in given if code}
    return SideLanguages(", ".join(sorted(known)) or of_most, bool(known), dict(counts.most_common()), other.found())


def _language_given(row: Row, name: str) -> str | None:
    code = row.get(f"{name}_lang")
    return known_code(code) if isinstance(code, str) else None
