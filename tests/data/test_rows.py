import pytest

from pipeline.data.rows import PLACE, PROBLEM, BadRow, Columns, encode_rows, find_text_problem, name_places, separate

COLUMNS: Columns = {"source": ["a", None, "a b c", "d"], "row": [3, 4, 5, 6]}


def find_problem(row):
    return find_text_problem("source", row["source"])


def make_features(columns):
    return [
        {"sample_id": row, "words": text.split()} for row, text in zip(columns["row"], columns["source"], strict=True)
    ]


def find_fault(feature):
    return "too long" if len(feature["words"]) > 2 else None


def test_rows_are_features_or_bad_rows_in_their_order():
    assert encode_rows(COLUMNS, find_problem, make_features, find_fault) == [
        {"sample_id": 3, "words": ["a"]},
        BadRow("row 4", "source is None, where a text is needed"),
        BadRow("row 5", "too long"),
        {"sample_id": 6, "words": ["d"]},
    ]


def test_what_the_reader_of_a_file_knows_comes_first():
    places: Columns = {PLACE: [f"train.jsonl:{number}" for number in range(1, 5)]}
    problems: Columns = {PROBLEM: [None, "the line is not JSON", None, None]}
    _, broken, long, _ = encode_rows({**COLUMNS, **places, **problems}, find_problem, make_features, find_fault)
    assert str(broken) == "train.jsonl:2: the line is not JSON" and str(long) == "train.jsonl:3: too long"


def test_only_good_rows_are_encoded():
    """Together, in one call, whatever columns there are."""
    calls = []

    def note(columns):
        calls.append(columns)
        return make_features(columns)

    encode_rows({**COLUMNS, "target": [*"wxyz"]}, find_problem, note)
    assert calls == [{"source": ["a", "a b c", "d"], "row": [3, 5, 6], "target": ["w", "y", "z"]}]
    assert encode_rows({"source": [], "row": []}, find_problem, note) == []


def test_a_feature_for_each_row():
    with pytest.raises(ValueError, match="shorter"):
        encode_rows(COLUMNS, find_problem, lambda columns: [])


def test_features_and_bad_rows_apart():
    encoded = encode_rows(COLUMNS, find_problem, make_features, find_fault)
    assert separate(encoded) == ([encoded[0], encoded[3]], [encoded[1], encoded[2]])
    assert name_places({"row": [7, 9]}) == ["row 7", "row 9"]
