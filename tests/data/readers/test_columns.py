import pytest

from pipeline.data.readers.columns import get_column, get_value, top_column
from pipeline.errors import DataError
from tests.data.folders import EXPECTED, ROWS, open_folder, texts, write_csv, write_jsonl, write_parquet


@pytest.mark.parametrize("streaming", [False, True])
def test_nested_and_dotted_columns(tmp_path, streaming):
    write_jsonl(tmp_path / "train.jsonl", [{"id": 1, "translation": row} for row in ROWS])
    rows = open_folder(tmp_path, streaming=streaming, source="translation.en", target="translation.fr")
    assert texts(rows) == EXPECTED
    (tmp_path / "flat").mkdir()
    write_jsonl(tmp_path / "flat" / "train.jsonl", [{"text.en": row["en"], "text.fr": row["fr"]} for row in ROWS])
    rows = open_folder(tmp_path / "flat", streaming=streaming, source="text.en", target="text.fr")
    assert texts(rows) == EXPECTED


@pytest.mark.parametrize(
    "row, name, top",
    [
        ({"en": "a"}, "en", "en"),
        ({"translation": {"en": "a"}}, "translation.en", "translation"),
        ({"text.en": "a", "text": {"en": "b"}}, "text.en", "text.en"),
        ({"paragraphs": [{"text": "a"}, {"text": "b"}]}, "paragraphs.0.text", "paragraphs"),
    ],
)
def test_a_dot_is_part_of_a_name_or_reaches_into_a_column(row, name, top):
    assert get_value(row, name) == "a" and top_column(row, name) == top
    assert get_column({key: [value] for key, value in row.items()}, name) == ["a"]


@pytest.mark.parametrize(
    "name, message",
    [
        ("translation.fra", "there is no column 'translation.fra'; did you mean translation.fr?"),
        ("translation.fr.text", "there is no column 'translation.fr.text'"),
        ("target", "there is no column 'target'; choose from id, translation. The row: {'id': 1, 'translation': {"),
        ("idd", "there is no column 'idd'; did you mean id? The columns: id, translation. The row: {'id': 1"),
    ],
)
def test_a_column_that_is_not_there_is_named(name, message):
    with pytest.raises(DataError) as raised:
        get_value({"id": 1, "translation": {"en": "a", "fr": "b"}}, name)
    assert str(raised.value).startswith(message)


def test_nothing_on_the_way_is_nothing():
    assert get_column({"translation": [{"en": "a"}, None]}, "translation.en") == ["a", None]
    assert get_column({"texts": [["a"], [], None]}, "texts.0") == ["a", None, None]


@pytest.mark.parametrize(
    "name, message",
    [
        ("parts.1.text", "there is no 'parts.1.text', as parts is a list of 1. The row: {"),
        ("parts.text", "there is no column 'parts.text', as parts is a list; name one element, as in parts.0.text"),
        ("parts.0.text.de", "there is no column 'parts.0.text.de', as parts.0.text is 'a'. The row: {"),
    ],
)
def test_a_way_that_ends_is_explained(name, message):
    with pytest.raises(DataError) as raised:
        get_value({"parts": [{"text": "a"}]}, name)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "writer, name", [(write_jsonl, "train.jsonl"), (write_parquet, "train.parquet"), (write_csv, "train.csv")]
)
def test_every_reader_shows_columns_and_a_row(tmp_path, streaming, writer, name):
    """A null on the way to a column of a first row is not taken for a missing column."""
    writer(tmp_path / name, [{"en": "a" * 200, "fr": "b"}])
    row = r"\{'en': 'aaaa.*a\.\.\., 'fr': 'b'\}"
    with pytest.raises(DataError, match=rf"no column 'ens'; did you mean en\? The columns: en, fr\. The .*row: {row}"):
        open_folder(tmp_path, streaming=streaming, source="ens")
    if name == "train.parquet":
        write_parquet(tmp_path / name, [{"text": None, "l": []}, {"text": {"en": "a"}, "l": ["b"]}])
        rows = open_folder(tmp_path, streaming=streaming, source="text.en", target="l.0")
        assert texts(rows) == [{"source": None, "target": None}, {"source": "a", "target": "b"}]
