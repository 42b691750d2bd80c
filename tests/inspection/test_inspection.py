"""What is found in all data of a config."""

from tests.inspection.faulty import HELD_OUT, config_of, look, write


def test_a_stream_is_looked_at_in_the_same_way(pairs):
    plain, streamed = (look(config_of(pairs, data={"streaming": streaming})) for streaming in (False, True))
    assert plain == streamed


def test_several_corpora_and_sets(pairs, tmp_path):
    other = write(tmp_path / "other", train=HELD_OUT * 2)
    data = {
        "mix": {"clean": {}, "copy": {"path": other, "filters": {"drop_held_out": True}}},
        "validation": {"a": "validation", "b": {"path": other, "split": "train"}},
    }
    sets = {report.place: report for report in look(config_of(pairs, data=data))}
    assert [*sets] == ["mix.clean", "mix.copy", "validation.a", "validation.b"]
    copy = sets["mix.copy"]
    assert copy.overlap["validation.a"].rows.count == 4 and copy.overlap["validation.a"].held_out_rows == 2
    assert copy.overlap["validation.b"].held_out_rows == 4
    assert copy.filters["drop_held_out"].is_on and copy.filters["drop_held_out"].found.count == 4
    assert not sets["mix.clean"].filters["drop_held_out"].is_on
