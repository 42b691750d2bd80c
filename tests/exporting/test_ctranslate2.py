"""A model as one of CTranslate2 computes the same; tests/inference/engines/test_ctranslate2.py has its search."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from pipeline.errors import ConfigError
from pipeline.tasks.sequence_to_sequence import SequenceToSequence

pytest.importorskip("ctranslate2")

from pipeline.exporting.ctranslate2 import ACTIVATIONS, vocabulary, write
from pipeline.inference.engines.ctranslate2 import CTranslate2Engine

ODD = ["\n", "a\tb", "\r", "\x00", "<0x0A>", "Ġ", " ", "é", "\u2028", '"', "\\", "<unused 0>", "<unused 2>"]


@pytest.fixture
def task() -> SequenceToSequence:
    """With tokens that files and messages are easily broken by, and fewer of them than the model has rows."""
    tokens = ["<pad>", "<s>", "</s>", "<unk>", *ODD, *"abcdefgh"]
    backend = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, "<unk>"))
    backend.add_tokens(["added"])
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return SequenceToSequence(PreTrainedTokenizerFast(tokenizer_object=backend, **names))


@pytest.fixture
def convert(task, tmp_path):
    def convert(model, quantization=None, positions=64) -> CTranslate2Engine:
        write(model, task, tmp_path, positions, quantization)
        return CTranslate2Engine.load(tmp_path, model.config, None)

    return convert


def losses(model, batch) -> torch.Tensor:
    with torch.no_grad():
        logits = model(**batch).logits
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["labels"], reduction="none")


@pytest.mark.parametrize("pre_norm", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layers", [(1, 3), (2, 1)])
def test_the_export_computes_the_same(make_model, batch, convert, pre_norm, tied, layers):
    model = make_model(
        pre_norm=pre_norm,
        tie_word_embeddings=tied,
        encoder_layers=layers[0],
        decoder_layers=layers[1],
        activation_function="gelu",
    )
    with torch.no_grad():
        for parameter in model.parameters():  # as biases start at 0 and norms at 1
            parameter.add_(torch.randn_like(parameter) * 0.1)
    torch.testing.assert_close(convert(model)(**batch).losses, losses(model, batch), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_are_the_same(make_model, batch, convert, name):
    model = make_model(activation_function=name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)  # far enough from 0 that no two activations look alike
    torch.testing.assert_close(convert(model)(**batch).losses, losses(model, batch), atol=5e-4, rtol=0)


def test_another_activation_is_refused(make_model, task, tmp_path):
    with pytest.raises(ConfigError, match=r"model\.activation_function: CTranslate2 has no 'relu2'; it has relu, gelu"):
        write(make_model(activation_function="relu2"), task, tmp_path, 64)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("quantization", ["int8", "int8_bfloat16", "float16"])
def test_quantized_weights_are_smaller_and_compute_nearly_the_same(make_model, batch, convert, tmp_path, quantization):
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    convert(model)
    size = (tmp_path / "model.bin").stat().st_size
    quantized = convert(model, quantization)
    assert (tmp_path / "model.bin").stat().st_size < 0.7 * size
    torch.testing.assert_close(quantized(**batch).losses, losses(model, batch), atol=0.3, rtol=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_weights_of_half_precision_are_exported_whole(make_model, batch, convert):
    model = make_model().bfloat16()
    expected = losses(model.float(), batch)
    torch.testing.assert_close(convert(model.bfloat16())(**batch).losses, expected, atol=1e-4, rtol=0)


def test_every_id_has_a_token_and_no_two_the_same(make_model, task, convert, tmp_path):
    model = make_model(vocab_size=50)
    engine = convert(model)
    tokens = json.loads((tmp_path / "shared_vocabulary.json").read_text())
    assert len({*tokens}) == len(tokens) == 50
    assert tokens[: len(task.tokenizer)] == task.tokenizer.convert_ids_to_tokens(list(range(len(task.tokenizer))))
    # Each is read as its own: the loss of every token after a source of every token.
    ids = torch.arange(3, 50)[:, None]
    end = torch.full_like(ids, 2)
    rows = torch.cat([ids, end], 1)
    batch = {"input_ids": rows, "attention_mask": torch.ones_like(rows), "labels": rows}
    torch.testing.assert_close(engine(**batch).losses, losses(model, batch), atol=1e-4, rtol=0)


def test_unused_names_are_no_tokens(task):
    size = len(task.tokenizer)
    assert vocabulary(task.tokenizer, size + 3)[size:] == ["<unused 1>", "<unused 3>", "<unused 4>"]
    assert vocabulary(task.tokenizer, 5) == ["<pad>", "<s>", "</s>", "<unk>", "\n"]


def test_the_table_of_positions_reaches_the_longest_texts(make_model, convert):
    model = make_model()
    engine = convert(model, positions=9)
    assert engine.max_positions == (9, 9)
    rows = torch.tensor([[*range(5, 13), 2]])
    batch = {"input_ids": rows, "attention_mask": torch.ones_like(rows), "labels": rows}
    torch.testing.assert_close(engine(**batch).losses, losses(model, batch), atol=1e-4, rtol=0)
