"""What an ONNX export writes; tests/inference/engines/test_onnx.py has the proof that it computes the same."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from pipeline.models.configuration_lstm import LSTMConfig
from pipeline.models.modeling_lstm import LSTMForCausalLM
from tests.conftest import ROOT

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

from pipeline.exporting.onnx import LARGE, LARGE_ALIGNMENT, WEIGHTS_FILE, SharedWeights, write  # noqa: E402

NO_TEXTS: Any = SimpleNamespace(tokenizer=None)
GENERATION = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0, max_new_tokens=8)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LSTMConfig(vocab_size=40, embedding_size=16, hidden_size=24, tie_word_embeddings=True)
    model = LSTMForCausalLM(config).eval()
    model.generation_config = GENERATION
    return model


@pytest.fixture(scope="module")
def folders(model, tmp_path_factory):
    """The model, exported twice."""
    folders = [tmp_path_factory.mktemp("export") for _ in range(2)]
    for folder in folders:
        write(model, NO_TEXTS, folder)
    return folders


def test_an_export_is_graphs_weights_and_configs_and_the_same_each_time(folders):
    one, other = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert one.keys() == {"model.onnx", WEIGHTS_FILE, "config.json", "generation_config.json"}
    assert one == other
    assert GenerationConfig.from_pretrained(folders[0]).max_new_tokens == 8


def test_a_graph_names_its_inputs_and_changing_axes_and_no_place_on_this_machine(folders):
    graph = onnx.load(folders[0] / "model.onnx", load_external_data=False).graph
    axes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in graph.input
    }
    assert axes == {
        "input_ids": ["batch", "length"],
        "attention_mask": ["batch", "length"],
        "hidden.0": ["batch", 24],
        "cell.0": ["batch", 24],
        "hidden.1": ["batch", 16],
        "cell.1": ["batch", 16],
    }
    state = [f"next_{part}.{layer}" for layer in (0, 1) for part in ("hidden", "cell")]
    assert [value.name for value in graph.output] == ["logits", *state]
    assert str(ROOT).encode() not in (folders[0] / "model.onnx").read_bytes()
    assert b"site-packages" not in (folders[0] / "model.onnx").read_bytes()


@pytest.mark.slow
def test_the_model_stays_as_it_was(model, tmp_path):
    model = model.to(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    write(model, NO_TEXTS, tmp_path)
    assert model.dtype == torch.bfloat16 and all(torch.equal(before[name], model.state_dict()[name]) for name in before)
    assert {tensor.data_type for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer} <= {
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.INT64,
        onnx.TensorProto.INT32,
    }


def test_no_matrix_stands_twice(tmp_path):
    import onnx_ir

    matrix = torch.rand(LARGE // 4 + 1).numpy()

    def graph():
        value = onnx_ir.Value(name="matrix", const_value=onnx_ir.tensor(matrix, name="matrix"))
        small = onnx_ir.Value(name="small", const_value=onnx_ir.tensor([1.0], name="small"))
        return onnx_ir.Model(onnx_ir.Graph([], [], nodes=[], initializers=[value, small], name="g"), ir_version=10)

    graphs = [graph(), graph()]
    with (tmp_path / WEIGHTS_FILE).open("wb") as stream:
        stream.write(b"something before")
        weights = SharedWeights(stream)
        for each in graphs:
            weights.take_from(each)
    places = [each.graph.initializers["matrix"].const_value for each in graphs]
    assert {(place.location, place.offset, place.length) for place in places} == {
        (WEIGHTS_FILE, LARGE_ALIGNMENT, matrix.nbytes)
    }
    assert (tmp_path / WEIGHTS_FILE).read_bytes()[LARGE_ALIGNMENT:] == matrix.tobytes()
    assert not isinstance(graphs[0].graph.initializers["small"].const_value, onnx_ir.ExternalTensor)
