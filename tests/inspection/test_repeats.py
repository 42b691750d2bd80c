"""Rows that are there twice."""

from pipeline.inspection.repeats import Hashes, HeldOut
from tests.inspection.faulty import config_of, look, write


def test_a_target_that_is_a_list(tmp_path):
    rows = [{"source": "a b", "target": ["c d", "e"]}] * 2
    train = look(config_of(write(tmp_path / "data", train=rows), data={"validation": None}))[0]
    assert train.bad.count == 0 and train.repeated.rows.count == 1 and train.repeated.sources.count == 0


def hashes_of(*rows: tuple[str, str, str]) -> Hashes:
    hashes = Hashes()
    for number, (source, target, language) in enumerate(rows):
        texts = {"source": source, "target": target}
        hashes.add(number, {**texts, "target_lang": language, "(place)": f"x:{number}"}, texts)
    return hashes


def test_a_source_in_two_languages_has_one_target_in_each():
    hashes = hashes_of(("a", "b", "fr"), ("a", "c", "de"), ("a", "b", "fr"), ("a", "d", "de"), ("a", "c", "de"))
    assert hashes.find_repeated() == (2, [(0, 2), (1, 4)])
    assert hashes.find_ambiguous() == (1, [(1, 3)])
    assert hashes_of().find_repeated() == (0, []) and hashes_of().find_ambiguous() == (0, [])


def test_rows_of_a_held_out_set():
    held_out = HeldOut(hashes_of(("a", "b", ""), ("a", "b", ""), ("c", "d", "")).texts)
    training = hashes_of(("a", "b", "fr"), ("a", "x", ""), ("z", "d", ""), ("a", "b", ""))
    assert held_out.find(training.texts).tolist() == [True, False, False, True] and held_out.rows == 2
    assert not HeldOut(hashes_of().texts).find(training.texts).any()
