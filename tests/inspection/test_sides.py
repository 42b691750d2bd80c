"""The texts of one column, and what the tokenizer makes of them."""

from tokenizers import normalizers

from pipeline.inspection.sides import Side, quantiles
from tests.inspection.faulty import config_of, look, write
from tokenizer.training import train


def test_what_the_tokenizer_cannot_write(tmp_path):
    rows = [{"source": "a dog barks", "target": "ein Hund bellt"}] * 5 + [{"source": "a zebra", "target": "ﬁn"}]
    path = write(tmp_path / "data", train=rows)
    train = look(config_of(path, tokenizer={"kind": "word"}, data={"validation": None}))[0]
    assert train.unwritten["source"].tokens == 1 and train.unwritten["source"].pieces == {"zebra": 1}
    assert train.unwritten["source"].changed.count == 1 and train.unwritten["source"].tried == 6
    assert look(config_of(path, data={"validation": None}))[0].unwritten["source"].changed.count == 0


def test_characters_that_come_back_as_others():
    tokenizer = train(["a fine fin"] * 3, "bpe", 300, eos_position="end", max_length=20)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    side = Side(tokenizer)
    for number, text in enumerate(("a fine", "a ﬁne", "ﬁn\u00a0½")):
        side.add(number, f"x:{number}", text, [4, 2], 2)
    unwritten = side.describe_unwritten("source")
    assert unwritten.lost_characters == {"ﬁ": 2, "½": 1} and (unwritten.tried, unwritten.changed.count) == (3, 2)
    assert unwritten.changed.examples[0].reason == "'a ﬁne' comes back as 'a fine'"


def test_quantiles():
    assert quantiles({1: 1, 2: 1, 3: 1, 4: 97}, (0.01, 0.02, 0.5, 1.0)) == [1, 2, 4, 4]
    assert quantiles({}, (0.5,)) == [0]
