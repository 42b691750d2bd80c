"""What rules of `data.filters` would take."""

from tests.inspection.faulty import config_of, look, rows_of


def test_rules(pairs):
    """Those that are on at their value, the others at a usual one; each as if it were alone."""
    filters = look(config_of(pairs, data={"filters": {"max_word_length": 6, "drop_identical": True}}))[0].filters
    assert {name for name, trial in filters.items() if trial.is_on} == {"max_word_length", "drop_identical"}
    taken = {name: rows_of(trial.found) for name, trial in filters.items() if trial.found.count}
    assert "36" in taken.pop("max_length_ratio")
    assert taken == {
        "drop_identical": ["33"],
        "max_word_length": ["37"],
        "match_digits": ["32", "38"],
        "drop_held_out": ["39"],
        "drop_duplicates": ["31"],
    }
    assert filters["max_word_length"].value == 6 and filters["max_length_ratio"].value == 3
    assert filters["min_script_share"].value == {"source": {"Latin": 0.5}, "target": {"Latin": 0.5}}
    assert "8" in filters["match_digits"].found.examples[1].reason
