"""What tools of the ecosystem do with a model of transformers, done with classifier, LSTM and forecaster."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DynamicCache,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from pipeline.models.configuration_classifier import TransformerClassifierConfig
from pipeline.models.configuration_forecaster import TransformerForecasterConfig
from pipeline.models.configuration_lstm import LSTMConfig
from pipeline.models.modeling_classifier import TransformerForSequenceClassification
from pipeline.models.modeling_forecaster import TransformerForecaster
from pipeline.models.modeling_lstm import LSTMForCausalLM, LSTMState
from tests.conftest import TINY

SIZES: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 2,
    "attention_heads": 4,
    "ffn_dim": 32,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}


@dataclass
class Case:
    """A small model of a kind, and a batch of any size for it; the lengths are those that may change."""

    make: Callable[..., PreTrainedModel]
    auto_class: Any
    inputs: Callable[[int, int], dict[str, Tensor]]
    labels: Callable[[int, int], dict[str, Tensor]]
    output: str


def make_classifier(**changes) -> PreTrainedModel:
    torch.manual_seed(0)
    config = {"vocab_size": 40, "num_labels": 3, **TINY, **SIZES, "classifier_dropout": 0.0, "conv_kernels": [3]}
    return TransformerForSequenceClassification(TransformerClassifierConfig(**{**config, **changes})).eval()


def make_lstm(**changes) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "embedding_size": 12, "hidden_size": 16}
    return LSTMForCausalLM(LSTMConfig(**{**sizes, **changes})).eval()


def make_forecaster(**changes) -> PreTrainedModel:
    torch.manual_seed(0)
    config = {"context_length": 12, "prediction_length": 3, "patch_length": 4, "patch_stride": 3, "series": ["x", "y"]}
    config |= {"means": [1.0, 2.0], "stds": [2.0, 3.0]}
    return TransformerForecaster(TransformerForecasterConfig(**{**config, **SIZES, **changes})).eval()


def text(rows: int, length: int) -> dict[str, Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(3, 40, (rows, length))
    ids[0, length // 2 :] = 0  # padding
    return {"input_ids": ids, "attention_mask": ids.ne(0).long()}


CASES = {
    "classifier": Case(
        make_classifier,
        AutoModelForSequenceClassification,
        text,
        lambda rows, _: {"labels": torch.arange(rows) % 3},
        "logits",
    ),
    "lstm": Case(
        make_lstm,
        AutoModelForCausalLM,
        text,
        lambda rows, length: {"labels": text(rows, length)["input_ids"]},
        "logits",
    ),
    "forecaster": Case(
        make_forecaster,
        AutoModel,
        lambda rows, length: {"past_values": torch.linspace(0, 5, rows * (length + 9) * 2).sin().view(rows, -1, 2)},
        lambda rows, _: {"future_values": torch.linspace(0, 2, rows * 6).view(rows, 3, 2)},
        "prediction_outputs",
    ),
}
EACH = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@EACH
def test_a_stock_trainer_reports_the_loss_of_an_evaluation(case, tmp_path):
    model = case.make()
    rows, length = 6, 5
    batch = case.inputs(rows, length) | case.labels(rows, length)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), report_to="none", use_cpu=True, max_steps=1, per_device_eval_batch_size=6
    )
    data_set = [{name: tensor[row] for name, tensor in batch.items()} for row in range(rows)]
    trainer = Trainer(model, arguments, train_dataset=data_set, eval_dataset=data_set)
    with torch.no_grad():
        expected = model(**batch)
    trainer_loss = trainer.evaluate()["eval_loss"]
    assert trainer_loss == pytest.approx(expected.loss.item(), rel=1e-5)
    predictions = trainer.predict(data_set).predictions
    torch.testing.assert_close(torch.from_numpy(predictions), expected[case.output])
    trainer.train()


@EACH
def test_layers_that_are_kept_whole_are_there(case):
    """FSDP wraps the layers of these classes, and ends where it finds none of one."""
    model = case.make()
    assert model._no_split_modules and set(model._no_split_modules) <= {type(part).__name__ for part in model.modules()}


@EACH
def test_exported_with_any_batch_and_length(case):
    model = case.make()
    sample, other = case.inputs(3, 5), case.inputs(4, 8)
    shapes = {name: {0: Dim.AUTO, 1: Dim.AUTO} for name in sample}
    with torch.no_grad():
        program = torch.export.export(model, (), sample, dynamic_shapes=shapes).module()
        for inputs in (sample, other):
            torch.testing.assert_close(program(**inputs)[case.output], model(**inputs)[case.output])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_step_of_training_is_one_graph(case):
    model = case.make().train()
    batch = case.inputs(3, 4) | case.labels(3, 4)
    compiled: Any = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    losses = []
    for each in (model, compiled):
        loss = each(**batch).loss
        loss.backward()
        losses.append(loss)
    torch.testing.assert_close(*losses)
    for one, other in zip(model.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@EACH
def test_offloaded(case, tmp_path):
    model = case.make()
    model.save_pretrained(tmp_path / "model")
    inputs = case.inputs(3, 5)
    size = sum(parameter.nbytes for parameter in model.parameters())
    for device_map, max_memory in (("auto", {"cpu": size // 2}), ({"": "disk"}, None)):
        offloaded = case.auto_class.from_pretrained(
            tmp_path / "model", device_map=device_map, max_memory=max_memory, offload_folder=tmp_path / "offloaded"
        )
        assert "disk" in offloaded.hf_device_map.values() and "meta" in {p.device.type for p in offloaded.parameters()}
        torch.testing.assert_close(offloaded(**inputs)[case.output], model(**inputs)[case.output])


@EACH
def test_hidden_states_and_plain_tuples(case):
    model = case.make(attn_implementation="eager")
    inputs = case.inputs(3, 5)
    plain = model(**inputs)
    assert "hidden_states" not in plain and "attentions" not in plain
    outputs = model(**inputs, output_hidden_states=True)
    assert len(outputs.hidden_states) == model.config.num_hidden_layers + 1
    assert torch.equal(model(**inputs, return_dict=False)[0], plain[case.output])
    model.config.output_hidden_states = True
    assert torch.equal(model(**inputs).hidden_states[1], outputs.hidden_states[1])
    model.config.return_dict = False
    assert isinstance(model(**inputs), tuple)


@EACH
@pytest.mark.parametrize("name", ["position_ids", "head_mask", "atention_mask"])
def test_an_unknown_argument_is_refused(case, name):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        case.make()(**case.inputs(2, 5), **{name: torch.ones(2, 5)})


@pytest.mark.parametrize("make", [make_classifier, make_lstm], ids=["classifier", "lstm"])
def test_vectors_in_place_of_ids(make):
    model = make()
    inputs = text(3, 6)
    vectors = model.get_input_embeddings()(inputs["input_ids"])
    for mask in ({"attention_mask": inputs["attention_mask"]}, {}):
        ids = inputs["input_ids"] if mask else inputs["input_ids"][1:]
        given = model(inputs_embeds=vectors if mask else vectors[1:], **mask)
        torch.testing.assert_close(given.logits, model(ids, **mask).logits)
    for wrong in ({}, {"input_ids": inputs["input_ids"], "inputs_embeds": vectors}):
        with pytest.raises(ValueError, match=r"give .*, and not both"):
            model(**wrong)


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
def test_a_weight_that_is_no_longer_tied_is_saved(tmp_path, name):
    """As after an adapter was merged into one of the modules."""
    model = make_lstm(tie_word_embeddings=True)
    module = copy.deepcopy(model.get_submodule(name))
    torch.nn.init.normal_(module.weight)
    model.set_submodule(name, module)
    model.config.tie_word_embeddings = False  # as PEFT does then
    expected = model(**text(3, 6)).logits
    for folder in ("once", "twice"):
        model.save_pretrained(tmp_path / folder)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / folder)
        torch.testing.assert_close(model(**text(3, 6)).logits, expected)


# Steps of the LSTM


def test_keys_and_values_are_no_state():
    with pytest.raises(ValueError, match="past_key_values is a DynamicCache: an LSTM goes on from its LSTMState"):
        make_lstm()(**text(2, 5), past_key_values=DynamicCache())


@pytest.mark.parametrize("masked", [False, True])
def test_a_state_goes_through_an_exported_program(masked):
    """Token by token, for any number of rows, as a runtime without Python goes on."""
    model = make_lstm()
    ids = text(3, 6)["input_ids"]
    with torch.no_grad():
        state = model(ids[:, :2]).past_key_values
        sample = {"input_ids": ids[:, 2:3], "past_key_values": state}
        shapes = {"input_ids": {0: Dim.AUTO}, "past_key_values": [{0: Dim.AUTO}] * 4}
        if masked:
            sample["attention_mask"], shapes["attention_mask"] = torch.ones(3, 1).long(), {0: Dim.AUTO}
        program = torch.export.export(model, (), sample, dynamic_shapes=shapes).module()
        for rows in (3, 5):
            whole = model(ids[[0, 1, 2, 1, 2][:rows]])
            state = model(ids[[0, 1, 2, 1, 2][:rows], :1]).past_key_values
            for token in ids[[0, 1, 2, 1, 2][:rows], 1:].split(1, 1):
                mask = {"attention_mask": torch.ones_like(token)} if masked else {}
                outputs = program(input_ids=token, past_key_values=state, **mask)
                state = outputs.past_key_values
            assert isinstance(state, LSTMState)
            torch.testing.assert_close(outputs.logits[:, -1], whole.logits[:, -1])
            torch.testing.assert_close(state.cell, whole.past_key_values.cell)


@pytest.mark.slow
@EACH
def test_the_compiler_makes_the_gradients(case):
    model = case.make().train()
    batch = case.inputs(3, 4) | case.labels(3, 4)
    compiled: Any = torch.compile(copy.deepcopy(model), fullgraph=True)
    for each in (model, compiled):
        each(**batch).loss.backward()
    for one, other in zip(model.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
