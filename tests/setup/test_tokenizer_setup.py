from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from pipeline.errors import ConfigError
from pipeline.run import train
from pipeline.setup.tokenizer_setup import check_tokenizer, prepare_tokenizer
from tokenizer.training import train as train_tokenizer

ROWS: list[dict[str, Any]] = [{"source": "a b c", "target": "c b a"}, {"source": "a d", "target": None}] * 2


def untouchable():
    raise AssertionError("the rows were read")
    yield


def test_a_new_tokenizer_lies_in_the_output_folder(make_config, tmp_path):
    """Trained on the texts of both columns; what is no text is left to the encoding, which names its place."""
    tokenizer = prepare_tokenizer(make_config(), ROWS, None)
    assert tokenizer is not None
    assert set("abcd") <= set(tokenizer.get_vocab())
    assert AutoTokenizer.from_pretrained(tmp_path / "run").get_vocab() == tokenizer.get_vocab()
    assert tokenizer.model_max_length == make_config().data.max_source_length


def test_with_a_path_no_row_is_read(make_config, tmp_path):
    train_tokenizer(["a b"] * 2, "word", 20, max_length=64).save_pretrained(tmp_path / "tokenizer")
    tokenizer = prepare_tokenizer(make_config(), untouchable(), tmp_path / "tokenizer")
    assert tokenizer is not None and "a" in tokenizer.get_vocab() and not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=r"tokenizer\.path: no tokenizer could be loaded from .*nothing"):
        prepare_tokenizer(make_config(), untouchable(), tmp_path / "nothing")


def test_data_without_text_need_none(make_config):
    assert prepare_tokenizer(make_config("forecasting", forecasting={"series": ["x"]}), untouchable(), None) is None


def test_words_of_a_file_come_first(make_config, tmp_path):
    """Though the texts are cut off behind a number of them."""
    (tmp_path / "words.txt").write_text("x 1 2\ny 3 4\n")
    settings = {"words": str(tmp_path / "words.txt"), "max_texts": 6}
    tokenizer = prepare_tokenizer(make_config(tokenizer=settings), ROWS, None)
    assert tokenizer is not None
    vocabulary = tokenizer.get_vocab()
    assert {"x", "y"} <= {*vocabulary} and "d" not in vocabulary
    with pytest.raises(ConfigError, match=r"tokenizer\.words: other kinds than word have parts of words"):
        prepare_tokenizer(make_config(tokenizer={**settings, "kind": "bpe"}), ROWS, None)


def test_a_tokenizer_that_cannot_be_trained_is_named(make_config):
    with pytest.raises(ConfigError, match=r"tokenizer\.vocab_size: 100 is too small"):
        prepare_tokenizer(make_config(tokenizer={"kind": "bpe", "vocab_size": 100}), ROWS, None)


def test_what_a_tokenizer_lacks_is_an_error_of_the_config(make_config):
    tokenizer = train_tokenizer(["a b"] * 2, "word", 20, max_length=64)
    check_tokenizer(make_config(), tokenizer, ["a b"])
    tokenizer.pad_token = None
    with pytest.raises(ConfigError, match="pad"):
        check_tokenizer(make_config(), tokenizer, ["a b"])


def test_a_tokenizer_of_ones_own(make_config, tmp_path):
    tokenizer = train_tokenizer(["1 2 3 4 5 6 7 8 9"], "character", 20, max_length=64)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    folder = train(
        make_config(tokenizer={"path": str(tmp_path / "tokenizer")}, generation={"max_new_tokens": 9})
    ).output_dir
    assert AutoTokenizer.from_pretrained(folder)("1 2")["input_ids"] == tokenizer("1 2")["input_ids"]


def test_a_tokenizer_without_an_end_is_refused(make_config, no_step, tmp_path):
    tokenizer = train_tokenizer(["1 2 3"] * 2, "word", 20, max_length=64)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ConfigError, match=r"tokenizer: targets are encoded as .*without an end token"):
        train(make_config(tokenizer={"path": str(tmp_path / "tokenizer")}))
