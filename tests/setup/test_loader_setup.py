"""What a config says of batches reaches the loader."""

import json
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from pipeline.data.filters import READ
from pipeline.data.splits import open_split
from pipeline.errors import ConfigError, DataError
from pipeline.models.modeling_seq2seq import shift_right
from pipeline.setup.loader_setup import build_filters, build_loader, count_lanes, find_all_duplicates
from pipeline.tasks.language_modeling import LanguageModeling
from pipeline.tasks.sequence_to_sequence import SequenceToSequence
from pipeline.training.arguments import training_arguments
from tokenizer.training import train

ROWS = [{"source": "a b c d", "target": "d c b a"}, {"source": "a", "target": "b"}] * 8


@pytest.fixture
def task() -> SequenceToSequence:
    return SequenceToSequence(train(["a b c d"] * 2, "word", 10, max_length=16))


@pytest.fixture
def build(make_config, task):
    def make(rows=ROWS, lanes=1, **changes):
        config = make_config(**changes)
        return build_loader(config, training_arguments(config), task, {"": Dataset.from_list(rows)}, lanes)

    return make


def test_rows_of_a_batch(build):
    loader = build(training={"per_device_train_batch_size": 4, "dataloader_num_workers": 3})
    assert (loader.num_workers, loader.timeout, loader.pin_memory) == (3, 1200, False)
    batch = next(iter(build(training={"per_device_train_batch_size": 4})))
    assert {*batch} == {"input_ids", "attention_mask", "labels"} and len(batch["input_ids"]) == 4


def test_tokens_of_a_batch_and_packing(build):
    for batch in (next(iter(build(data={"batch_tokens": 24}))), next(iter(build(data={"batch_tokens": 30})))):
        assert batch["input_ids"].numel() + batch["labels"].numel() <= 30
    packed = next(iter(build(data={"batch_tokens": 256, "packing": True})))
    assert packed["source_rows"].shape == packed["input_ids"].shape == (1, 128)


def test_the_seed_of_the_data_decides_on_their_order(build):
    def first(**training) -> torch.Tensor:
        rows = [{"source": " ".join("abcd"[i % 4] * (1 + i % 3)), "target": "a"} for i in range(64)]
        batches = islice(build(rows, training=training), 4)
        return torch.cat([batch["input_ids"].flatten() for batch in batches])

    assert torch.equal(first(seed=1), first(seed=1)) and not torch.equal(first(seed=1), first(seed=2))
    assert torch.equal(first(seed=1, data_seed=2), first(seed=2))


def test_bad_rows_end_a_run_or_are_skipped(build):
    rows = [{"source": "a", "target": " "}, *ROWS]
    with pytest.raises(DataError, match="row 0: target is empty"):
        list(islice(build(rows), 3))
    loader = build(rows, data={"on_bad_row": "skip"})
    list(islice(loader, 3))
    assert loader.lanes.progress().skipped_rows >= 1


def test_sources_are_augmented(build, task):
    """Training alone is: the rows themselves stay as they are."""
    plain, changed = ([*islice(build(augmentation={"delete": p}), 2)] for p in (0, 0.9))
    tokens = [sum(int(batch["input_ids"].ne(0).sum()) for batch in batches) for batches in (plain, changed)]
    assert tokens[0] == 8 * 5 + 8 * 2 > tokens[1] >= 16 * 2
    with pytest.raises(ConfigError, match="augmentation: sequence_to_sequence has no source to change; leave it out"):
        task.make_batches = lambda *_: [].append
        build(augmentation={"delete": 0.9})


def test_words_are_dropped_on_both_sides(build, task):
    """Again in the same places when a run is repeated; the labels stay."""
    task.start_token_id = 1
    noise = {"word_dropout": 0.3, "word_dropout_target": 0.3}
    plain, *changed = ([*islice(build(augmentation=keys), 2)] for keys in ({}, noise, noise))
    for before, batch, again in zip(plain, *changed, strict=True):
        assert all(torch.equal(batch[name], again[name]) for name in batch)
        assert torch.equal(batch["labels"], before["labels"])
        sources = batch["input_ids"] == before["input_ids"]
        assert (batch["input_ids"][~sources] == task.tokenizer.unk_token_id).all() and not sources.all()
        read, expected = batch["decoder_input_ids"], shift_right(before["labels"], 1, 0)
        assert (read[read != expected] == task.tokenizer.unk_token_id).all() and (read != expected).any()


def test_noise_on_a_target_that_has_no_place_for_it(build, task):
    with pytest.raises(
        ConfigError, match=r"word_dropout_target: the decoder of model\.from begins with no start token"
    ):
        build(augmentation={"word_dropout_target": 0.1})
    task.text_columns = ("source",)
    for name in ("bpe_dropout_target", "word_dropout_target"):
        with pytest.raises(ConfigError, match=rf"augmentation.{name}: \w+ has no target text to change"):
            build(augmentation={name: 0.1})


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_are_filtered(make_config, tmp_path, caplog, streaming):
    """Of 21 rows: one that is held out, one too often, and one whose sides are the same."""
    pairs = [("a " * number, "b " * number) for number in range(1, 20)] + [("a a", " b b"), ("c", "c")]
    lines = [json.dumps({"source": source, "target": target}) for source, target in pairs]
    for name, part in (("a", lines[:10]), ("b", lines[10:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(part))
    rules = {"drop_held_out": True, "drop_duplicates": True, "drop_identical": True}
    data = {"path": str(tmp_path), "options": {}, "streaming": streaming, "filters": rules, "shuffle_window": 8}
    config = make_config(data={**data, "train": ["a.jsonl", "b.jsonl"]})
    task = SequenceToSequence(train(["a b c d"] * 2, "word", 10, max_length=16))
    rows = {"": open_split(config.data, config.data.train, task.columns(config))}
    with caplog.at_level("INFO", logger="pipeline"):
        duplicates = find_all_duplicates(config, SequenceToSequence, rows, tmp_path)
    assert "train: 1 rows are the same as an earlier one" in caplog.text
    filters = build_filters(config, task, [{"source": "a a a", "target": ["b b b", "b"]}], duplicates)
    loader = build_loader(config, training_arguments(config), task, rows, filters=filters)
    list(islice(loader, 3))
    assert loader.lanes.progress().filtered == {"": {READ: 21} | dict.fromkeys(rules, 1)}
    assert loader.lanes.count_batches() == 3  # of 18 rows, in windows of 8


def test_duplicates_need_rows_that_can_be_told_apart(make_config, tmp_path):
    Dataset.from_list(ROWS).to_parquet(tmp_path / "train.parquet")
    data = {"path": str(tmp_path), "options": {}, "streaming": True, "filters": {"drop_duplicates": True}}
    config = make_config(data=data)
    rows = {"": open_split(config.data, "train", SequenceToSequence.columns(config))}
    with pytest.raises(ConfigError, match=r"drop_duplicates: the rows of this stream \(train\) have no file and line"):
        find_all_duplicates(config, SequenceToSequence, rows, tmp_path)
    config = make_config(data={**data, "streaming": False})
    rows = {"": open_split(config.data, "train", SequenceToSequence.columns(config))}
    assert len(find_all_duplicates(config, SequenceToSequence, rows, tmp_path)[""]) == 14


def test_texts_are_augmented(build, task):
    """Both sides before they are encoded, and then the tokens of what came of it."""
    task.tokenizer = train(["a b c d A B C D"] * 2, "word", 20, max_length=16)
    cased, changed = ([*islice(build(augmentation={"upper_case": 1.0, "delete": rate}), 2)] for rate in (0, 0.9))
    capitals = {*task.tokenizer.convert_tokens_to_ids([*"ABCD"])}
    for name in ("input_ids", "labels"):
        assert {*torch.cat([batch[name].flatten() for batch in cased]).tolist()} - {-100, 0, 2} == capitals
    sources = torch.cat([batch["input_ids"].flatten() for batch in changed])
    assert {*sources.tolist()} - {0, 2} <= capitals and int(sources.ne(0).sum()) < 8 * 5 + 8 * 2
    with pytest.raises(ConfigError, match="augmentation: sequence_to_sequence has no source to change; leave it out"):
        task.make_batches = lambda *_: [].append
        build(augmentation={"swap_letters": 0.1})


def test_case_that_the_tokenizer_loses_is_refused(build, task):
    task.tokenizer = train(["a b c d"] * 2, "word", 10, max_length=16, lowercase=True)
    build(augmentation={"swap_letters": 0.1, "drop_end_punctuation": 0.1})
    for name in ("upper_case", "title_case"):
        with pytest.raises(ConfigError, match=rf"augmentation\.{name}: the tokenizer puts all texts in lower case"):
            build(augmentation={name: 0.1})


def test_a_run_keeps_its_lanes(make_config, monkeypatch):
    """As many as ranks when it begins, or as the config says; from a checkpoint as many as that has."""

    def count(lanes=None, begun=None, task=SequenceToSequence):
        state = None if begun is None else {"next_batch": 0, "lanes": [{}] * begun}
        return count_lanes(make_config(data={"lanes": lanes}), state, task)

    monkeypatch.setattr("pipeline.setup.loader_setup.PartialState", lambda: SimpleNamespace(num_processes=3))
    assert (count(), count(2), count(begun=4), count(4, begun=4)) == (3, 2, 4, 4)
    assert count(task=LanguageModeling) == count(1, task=LanguageModeling) == 1
    with pytest.raises(ConfigError, match=r"data.lanes: the run began with 4, and goes on with as many; leave it out"):
        count(3, begun=4)
    with pytest.raises(ConfigError, match=r"data.lanes: 2 is given, but the rows of .* are one text; leave it out"):
        count(2, task=LanguageModeling)


def test_lanes_share_the_rows(build, caplog):
    with caplog.at_level("INFO", logger="pipeline"):
        assert len(build(lanes=4).lanes.streams) == 4
    assert "4 lanes, each with every 4th row" in caplog.text
    with pytest.raises(ConfigError, match=r"data.lanes: 17 lanes need as many training rows, and there are 16"):
        build(lanes=17)
