import pytest

from pipeline.data.readers.columns import get_column, get_value, top_column
from pipeline.errors import DataError
from tests.data.folders import EXPECTED, ROWS, open_folder, texts, write_jsonl


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
    ],
)
def test_a_dot_is_part_of_a_name_or_reaches_into_a_column(row, name, top):
    assert get_value(row, name) == "a" and top_column(row, name) == top
    assert get_column({key: [value] for key, value in row.items()}, name) == ["a"]


@pytest.mark.parametrize(
    "name, message",
    [
        ("translation.fra", "there is no column 'translation.fra'; did you mean fr?"),
        ("translation.fr.text", "there is no column 'translation.fr.text'"),
        ("target", "there is no column 'target'; choose from id, translation"),
    ],
)
def test_a_column_that_is_not_there_is_named(name, message):
    with pytest.raises(DataError) as raised:
        get_value({"id": 1, "translation": {"en": "a", "fr": "b"}}, name)
    assert str(raised.value).startswith(message)


def test_nothing_on_the_way_is_nothing():
    assert get_column({"translation": [{"en": "a"}, None]}, "translation.en") == ["a", None]
