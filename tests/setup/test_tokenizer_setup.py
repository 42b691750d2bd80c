from functools import partial
from typing import Any

import pytest
from datasets import Dataset
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from pipeline.data.hub_reading import iterate_rows
from pipeline.data.mixture import CORPUS
from pipeline.errors import ConfigError
from pipeline.run import train
from pipeline.setup.tokenizer_setup import check_tokenizer, model_languages, prepare_tokenizer, typical_rows
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


def test_a_new_tokenizer_has_seen_the_noise(make_config):
    """Of each corpus its own, with the rows of both."""

    def vocabulary(rows, **changes):
        tokenizer = prepare_tokenizer(make_config(**changes), rows, None)
        assert tokenizer is not None
        return {*tokenizer.get_vocab()} - {*tokenizer.all_special_tokens}

    rows = [{"source": "a", "target": "b"}] * 16
    assert vocabulary(rows, augmentation={"upper_case": 0.5}) == {*"abAB"}
    mix = {"data": {"path": "reversal", "mix": {"one": {}, "two": {}}}}
    mixed = [{**row, "corpus": "one"} for row in rows] + [{"source": "c", "target": "d", "corpus": "two"}] * 4
    assert vocabulary(mixed, **mix, augmentation={"upper_case": {"two": 1.0}}) == {*"abCD"}


def test_rows_for_a_tokenizer_name_their_corpus(make_config):
    mix = {name: {"path": "reversal", "rows": 2} for name in ("one", "two")}
    corpora = {name: Dataset.from_list([{"source": name}] * 2) for name in mix}
    readers = {name: partial(iterate_rows, rows, 0.0) for name, rows in corpora.items()}
    rows = [
        *typical_rows(make_config(data={"path": "", "mix": mix, "validation": None, "test": None}), corpora, readers)
    ]
    assert len(rows) >= 4 and all(row[CORPUS] == row["source"] for row in rows)


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


def languages_of(config, tokenizer):
    return [*model_languages(config, tokenizer)]


def test_tags_are_those_of_all_corpora(make_config):
    """Named in the config, or found in the rows that the tokenizer is trained on."""
    mix = {
        "a": {"path": "reversal", "target_lang": "de", "source_tag": "<bt>"},
        "b": {"path": "reversal", "target_lang": {"column": "language"}},
        "c": {"path": "reversal", "target_lang": {"column": "language", "codes": ["pt-BR"]}},
    }
    config = make_config(data={"mix": mix, "validation": None, "test": None})
    rows = [{**row, "target_lang": code} for row, code in zip(ROWS, ["fr", "", None, "no code!"], strict=True)]
    tokenizer = prepare_tokenizer(config, rows, None)
    assert tokenizer is not None
    assert tokenizer.all_special_tokens[-4:] == ["<2de>", "<2pt-BR>", "<bt>", "<2fr>"]
    assert languages_of(config, tokenizer) == ["de", "pt-BR", "fr"]
    again = prepare_tokenizer(config, untouchable(), config.output_dir)
    assert again is not None and again.get_vocab() == tokenizer.get_vocab()
    assert model_languages(make_config(), tokenizer) == {}


def test_a_tokenizer_that_lacks_tags_gets_them_for_a_new_model(make_config, tmp_path, caplog):
    path = str(tmp_path / "tokenizer")
    train_tokenizer(["a b"] * 2, "word", 20, max_length=64).save_pretrained(path)
    data: dict[str, Any] = {"target_lang": "de", "source_tag": "<bt>"}
    config = make_config(data=data, tokenizer={"path": path})
    with caplog.at_level("INFO", "pipeline"):
        tokenizer = prepare_tokenizer(config, untouchable(), path)
    assert "special tokens are added: <2de>, <bt>" in caplog.text
    assert tokenizer is not None and languages_of(config, tokenizer) == ["de"]
    tokenizer.save_pretrained(tmp_path / "checkpoint")
    # A run that goes on has those of its checkpoint.
    config = make_config(data={"target_lang": "fr"}, tokenizer={"path": path})
    with pytest.raises(ConfigError, match=r"^data.target_lang: the tokenizer knows no 'fr'; choose from de$"):
        prepare_tokenizer(config, untouchable(), tmp_path / "checkpoint")
    config = make_config(data={"target_lang": {"column": "language"}}, tokenizer={"path": path})
    with pytest.raises(ConfigError, match=r"^data.target_lang: name the languages, as .* \{column: NAME, codes: \[de"):
        prepare_tokenizer(config, untouchable(), path)


def test_languages_that_nothing_can_be_told_of(make_config):
    for task, problem in (("text_classification", "marks no rows"), ("forecasting", "has no texts")):
        changes: dict[str, Any] = {"forecasting": {"series": ["x"]}} if task == "forecasting" else {}
        for key in ("source_lang", "target_lang"):
            with pytest.raises(ConfigError, match=rf"^data.{key}: {task} {problem}; leave it out"):
                prepare_tokenizer(make_config(task, data={key: "en"}, **changes), ROWS, None)
    held_out = {"v": {"target_lang": "de"}}
    with pytest.raises(
        ConfigError, match=r"^data.target_lang: needed, as the model is told the language of other rows$"
    ):
        prepare_tokenizer(make_config(data={"validation": held_out, "test": None}), ROWS, None)
    mix = {"a": {"path": "reversal", "target_lang": "de"}, "b": {"path": "reversal"}}
    with pytest.raises(ConfigError, match=r"^data.mix.b.target_lang: needed, as .*; choose from de$"):
        prepare_tokenizer(make_config(data={"mix": mix, "validation": None, "test": None}), ROWS, None)
    rows = [{**ROWS[0], "target_lang": f"x{number}"} for number in range(1002)]
    with pytest.raises(ConfigError, match=r"^data.target_lang: the column has over 1000 values, such as 'x1000'"):
        prepare_tokenizer(make_config(data={"target_lang": {"column": "source"}}), rows, None)
