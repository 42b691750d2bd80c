import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, PreTrainedTokenizerFast

from pipeline.config import DataConfig
from pipeline.data.augmentation import READ_LABELS
from pipeline.data.rows import BadRow, Columns, Feature, separate
from pipeline.errors import DataError
from pipeline.tasks.base import tokenize
from pipeline.tasks.encoding import encode_rows
from pipeline.tasks.sequence_to_sequence import SequenceToSequence, count_positions
from tests.data.folders import open_folder, write_jsonl, write_parquet
from tests.families import FAMILIES, make_model
from tokenizer.training import train


@pytest.fixture
def tokenizer():
    return train(["a b c d"] * 2, "word", 10, max_length=16)


def encode(task: SequenceToSequence, columns: Columns) -> list[Feature]:
    """The features of rows that are all good."""
    features, bad_rows = separate(task.encode(columns))
    assert not bad_rows
    return features


def test_encode_and_collate(tokenizer):
    task = SequenceToSequence(tokenizer)
    features = encode(task, {"source": ["a b", "a"], "target": ["c", "c d"], "row": [0, 1]})
    a, b, c, d = tokenizer.convert_tokens_to_ids(list("abcd"))
    assert [feature["input_ids"] for feature in features] == [[a, b, 2], [a, 2]]
    batch = {name: tensor.tolist() for name, tensor in task.collate(features).items()}
    assert batch == {
        "input_ids": [[a, b, 2], [a, 2, 0]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "labels": [[c, 2, -100], [c, d, 2]],
    }


def test_pack(tokenizer):
    task = SequenceToSequence(tokenizer)
    features = encode(task, {"source": ["a b", "a"], "target": ["c", "c d"], "row": [0, 1]})
    a, b, c, d = tokenizer.convert_tokens_to_ids(list("abcd"))
    batch = task.pack(features)
    assert {name: tensor[0, :6].tolist() for name, tensor in batch.items()} == {
        "input_ids": [a, b, 2, a, 2, 0],
        "source_rows": [0, 0, 0, 1, 1, 2],
        "labels": [c, 2, c, d, 2, -100],
        "target_rows": [0, 0, 1, 1, 1, 2],
    }
    assert {tensor.shape for tensor in batch.values()} == {(1, 128)}
    full = task.pack([{"input_ids": [a] * 128, "labels": [a] * 127}])
    assert [full[name].shape[1] for name in ("input_ids", "labels")] == [256, 128], "there is always some padding"


def test_what_the_decoder_reads_in_place_of_the_labels(tokenizer, make_model):
    """Behind the start of the model, or what the decoder is told; as long as the labels, also of a stretched row."""
    task = SequenceToSequence.from_model(tokenizer, make_model().config)
    told = {"input_ids": [5, 2], "labels": [6, 7, 2], READ_LABELS: [6, 3, 2], "decoder_start": [1, 9]}
    plain = {"input_ids": [5, 2], "labels": [8, 2], READ_LABELS: [3, 2]}
    for features, read, labels in (
        ([plain, plain], [[1, 3], [1, 3]], [[8, 2], [8, 2]]),
        ([told, plain], [[1, 9, 6, 3], [1, 3, 0, 0]], [[-100, 6, 7, 2], [8, 2, -100, -100]]),
    ):
        batch = task.collate(features)
        assert batch["decoder_input_ids"].tolist() == read and batch["labels"].tolist() == labels
    packed = task.pack([told, plain])
    assert packed["decoder_input_ids"][0, :7].tolist() == [1, 9, 6, 3, 1, 3, 0]
    assert packed["labels"][0, :6].tolist() == [-100, 6, 7, 2, 8, 2]
    stretched = task.stretch(told, DataConfig(path="x", max_source_length=4, max_target_length=6))
    batch = task.collate([stretched])
    assert batch["decoder_input_ids"].tolist() == [[1, 9, 6, 3, 2, 6]] and batch["labels"].shape == (1, 6)


def test_models_whose_decoder_begins_with_a_label_have_no_start(tokenizer):
    starts = [
        SequenceToSequence.from_model(tokenizer, AutoConfig.for_model(name)).start_token_id
        for name in ("marian", "mbart", "plbart")
    ]
    assert starts[0] is not None and starts[1:] == [None, None]


def test_tokenizing_is_the_tokenizers(tokenizer):
    """Whatever was asked of it before, and special tokens in a text being text."""
    texts = ["a b c d", "a", "</s> b", "x"]
    expected = tokenizer(texts)["input_ids"]
    tokenizer(texts, truncation=True, max_length=2, padding=True, add_special_tokens=False)
    assert tokenize(tokenizer, texts) == expected
    assert tokenize(tokenizer, texts, is_target=True) == expected
    assert tokenize(tokenizer, []) == []


def test_tokenizing_into_a_language_of_the_target(tokenizer):
    class Bilingual(PreTrainedTokenizerFast):
        def _switch_to_target_mode(self):
            self.backend_tokenizer.post_processor = TemplateProcessing(single="b $A", special_tokens=[("b", self.b)])

        def _switch_to_input_mode(self):
            self.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])

    bilingual = Bilingual(tokenizer_object=tokenizer.backend_tokenizer)
    a, bilingual.b = tokenizer.convert_tokens_to_ids(["a", "b"])
    assert tokenize(bilingual, ["a"]) == [[a]] and tokenize(bilingual, ["a"], is_target=True) == [[bilingual.b, a]]


def test_long_rows_are_bad(tokenizer):
    columns: Columns = {"source": ["a b c", "a", "a b"], "target": ["a", "a b c", "a"], "row": [0, 1, 2]}
    task = SequenceToSequence(tokenizer)
    limits = DataConfig(path="x", max_source_length=3, max_target_length=3)
    one, two, three = task.encode(columns, limits)
    assert one == BadRow("row 0", "source has 4 tokens, where data.max_source_length=3")
    assert two == BadRow("row 1", "target has 4 tokens, where data.max_target_length=3")
    assert not isinstance(three, BadRow) and three["sample_id"] == 2


@pytest.mark.parametrize(
    "value, reason",
    [
        (None, "target is None, where a text is needed"),
        (7, "target is 7, where a text is needed"),
        ([], "target is an empty list, where at least one text is needed"),
        (["a", 7], "target[1] is 7, where a text is needed"),
        (["a", None], "target[1] is None, where a text is needed"),
        (["a", " "], "target[1] is empty"),
        ([["a"]], "target[0] is ['a'], where a text is needed"),
        (" \t", "target is empty"),
        ("a \ufffd", "target holds U+FFFD, the mark of bytes that are not UTF-8"),
    ],
)
def test_what_is_wrong_with_a_row(tokenizer, value, reason):
    columns = {"source": ["a", "b", "c"], "target": ["a", value, "d"], "row": [7, 31, 8]}
    first, bad, last = SequenceToSequence(tokenizer).encode(columns)
    assert not isinstance(first, BadRow) and not isinstance(last, BadRow)
    assert bad == BadRow("row 31", reason) and first["sample_id"] == 7 and last["sample_id"] == 8
    assert tokenizer.decode(last["labels"], skip_special_tokens=True) == "d"


def test_sources_alone(tokenizer):
    """As for prediction: any text goes."""
    features = encode(SequenceToSequence(tokenizer), {"source": ["a \ufffd", "b"], "row": [0, 1]})
    assert [feature["labels"] for feature in features] == [[], []] and len(features[1]["input_ids"]) == 2


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name, writer", [("train.jsonl", write_jsonl), ("train.parquet", write_parquet)])
def test_a_column_of_lists(tokenizer, tmp_path, name, writer, streaming):
    """Of lists of texts the first is learned; all are kept for evaluation. Nested columns as well."""
    rows = [{"en": "a", "answers": {"fr": ["b", "c d"]}}, {"en": "c", "answers": {"fr": ["d"]}}]
    writer(tmp_path / name, rows)
    task = SequenceToSequence(tokenizer)
    opened = open_folder(tmp_path, streaming=streaming, target="answers.fr")
    features = encode_rows(task, opened)
    assert [feature["target"] for feature in features] == [["b", "c d"], ["d"]]
    assert [tokenizer.decode(feature["labels"]) for feature in features] == ["b </s>", "d </s>"]
    assert task.perfect_predictions(features) == ["b", "d"]
    writer(tmp_path / name, [*rows, {"en": "d", "answers": {"fr": ["b", None]}}])
    with pytest.raises(DataError, match=r"(:3|row 2): target\[1\] is None, where a text is needed"):
        encode_rows(task, open_folder(tmp_path, streaming=streaming, target="answers.fr"))


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_are_as_long_as_the_positions_of_a_model(tokenizer, family):
    """One more token, and it fails; ProphetNet's encoder reads on, at its last position for ever."""
    model = make_model(family, 320, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2)
    task = SequenceToSequence.from_model(tokenizer, model.config)
    sides = ("source", "target")
    for side, positions in zip(sides, task.max_positions, strict=True):
        sizes = dict.fromkeys(sides, 8) | {side: positions or 80}
        long = [torch.full((1, sizes[name]), 5) for name in sides]
        model(input_ids=long[0], labels=long[1])
        if positions is None:
            continue
        texts = {name: [" ".join("a" * (size - 1)), " ".join("a" * size)] for name, size in sizes.items()}
        (good,), (bad,) = separate(task.encode({**texts, "row": [3, 4]}))
        assert len(good["labels" if side == "target" else "input_ids"]) == positions
        assert str(bad) == f"row 4: {side} has {positions + 1} tokens, and the model has positions for {positions}"
        if (family, side) != ("prophetnet", "source"):
            longer = [torch.full((1, sizes[name] + (name == side)), 5) for name in sides]
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=longer[0], labels=longer[1])


def test_positions_behind_the_padding():
    """RoBERTa's table has two rows that no token can have."""
    roberta = {"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}
    assert count_positions(AutoConfig.for_model("encoder-decoder", encoder=roberta, decoder=roberta)) == (512, 512)
