"""The texts of one column, and what the tokenizer makes of them."""

from pipeline.inspection.inspection import inspect
from pipeline.inspection.sides import quantiles
from tests.inspection.faulty import config_of, write


def test_what_the_tokenizer_cannot_write(tmp_path):
    rows = [{"source": "a dog barks", "target": "ein Hund bellt"}] * 5 + [{"source": "a zebra", "target": "ﬁn"}]
    path = write(tmp_path / "data", train=rows)
    train = inspect(config_of(path, tokenizer={"kind": "word"}, data={"validation": None})).sets[0]
    assert train.unwritten["source"].tokens == 1 and train.unwritten["source"].pieces == {"zebra": 1}
    assert train.unwritten["source"].changed.count == 1 and train.unwritten["source"].tried == 6
    assert inspect(config_of(path, data={"validation": None})).sets[0].unwritten["source"].changed.count == 0
    lost = inspect(config_of(path, tokenizer={"kind": "unigram", "vocab_size": 40}, data={"validation": None})).sets[0]
    assert lost.unwritten["target"].lost_characters == {"ﬁ": 1} and not lost.unwritten["source"].lost_characters


def test_quantiles():
    assert quantiles({1: 1, 2: 1, 3: 1, 4: 97}, (0.01, 0.02, 0.5, 1.0)) == [1, 2, 4, 4]
    assert quantiles({}, (0.5,)) == [0]
