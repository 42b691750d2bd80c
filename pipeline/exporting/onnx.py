"""A model as ONNX graphs, which onnxruntime or any other reader of ONNX runs without this project and without PyTorch.

The graphs of one model share one file of weights, in which no matrix stands twice. An encoder-decoder is three graphs:
`encoder.onnx`; `cross_attention.onnx`, the keys and values of an encoded source, once for each source; `decoder.onnx`,
which takes them and the keys and values of the target so far, and gives the logits and those with the new tokens.

`transformers.exporters`, which is experimental in 5.23, was tried first. Its `export_for_generation` makes no graph of
the encoder, fixes the cache of its decoding step at the one token of its sample, saves the decoder's weights twice, and
describes the inputs by names of Python classes that are imported when the export is read.
https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/exporters/exporter_onnx.py

Shapes: B batch, K beams of each row, S source length, P length of the target so far, T new tokens, D = d_model, H
heads, E = D / H, L steps of the past, C series.
"""

import copy
import hashlib
import inspect
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import onnx
import onnx_ir
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from pipeline.exporting.stock import save_tokenizer
from pipeline.models.modeling_classifier import TransformerForSequenceClassification
from pipeline.models.modeling_forecaster import TransformerForecaster
from pipeline.models.modeling_lstm import LSTMForCausalLM, LSTMLayer
from pipeline.models.modeling_seq2seq import Seq2SeqTransformerForConditionalGeneration
from pipeline.models.transformer_layers import DecoderLayer
from pipeline.tasks.base import Task

OPSET = 20
WEIGHTS_FILE = "weights.data"
SMALLEST_SHARED = 1024  # bytes; smaller tensors stay in their graph, where the inference of shapes can read them
LARGE = 1 << 20  # bytes; onnxruntime maps larger weights into memory, for which they begin at a multiple of
LARGE_ALIGNMENT = 1 << 16  # bytes, as Windows wants it
SMALL_ALIGNMENT = 64  # bytes
ONNX_GATES = (0, 3, 1, 2)  # PyTorch's order is input, forget, cell, output; ONNX's input, output, forget, cell
# Sizes of the changing axes while a graph is traced: all different, so that none is taken for another, and none 0 or 1,
# which would be taken as fixed.
EXAMPLE = {"batch": 2, "beams": 3, "length": 5, "source_length": 7, "past_length": 4}
SOURCE = "last_hidden_state"
BEHIND = 1 << 40  # all places in a text


@dataclass
class Graph:
    """A graph to be: its name, what it computes, and its inputs.

    Args:
        inputs: name -> an example and, for each axis whose size changes, axis -> name.
        outputs: names, in order.
    """

    name: str
    module: nn.Module
    inputs: dict[str, tuple[Tensor, dict[int, str]]]
    outputs: list[str]


class Encoder(nn.Module):
    def __init__(self, model: Seq2SeqTransformerForConditionalGeneration):
        super().__init__()
        self.encoder = model.encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.encoder(input_ids, attention_mask).last_hidden_state  # (B, S, D)


class CrossAttention(nn.Module):
    """What the decoder reads of an encoded source: its keys and values, layer by layer."""

    def __init__(self, model: Seq2SeqTransformerForConditionalGeneration):
        super().__init__()
        self.projections = nn.ModuleList()
        for layer in model.decoder.layers:
            assert isinstance(layer, DecoderLayer)
            self.projections.extend([layer.cross_attn.k_proj, layer.cross_attn.v_proj])
        self.heads = model.config.attention_heads

    def forward(self, last_hidden_state: Tensor) -> list[Tensor]:
        """Project (B, S, D) to (B, H, S, E) each."""
        return [
            projection(last_hidden_state).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in self.projections
        ]


class Decoder(nn.Module):
    """The beams of a source read the one copy of it, so they have an axis of their own."""

    def __init__(self, model: Seq2SeqTransformerForConditionalGeneration):
        super().__init__()
        self.config, self.decoder, self.lm_head = model.config, model.decoder, model.lm_head

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *keys_and_values: Tensor) -> list[Tensor]:
        """Return logits (B, K, T, V), and the keys and values (B, K, H, P + T, E) of the target.

        Args:
            input_ids: (B, K, T).
            attention_mask: of the source, (B, S).
            keys_and_values: of the target so far, layer by layer, (B, K, H, P, E); then of the source, (B, H, S, E).
        """
        layers = len(self.decoder.layers)
        past, source = keys_and_values[: 2 * layers], keys_and_values[2 * layers :]
        cache = EncoderDecoderCache(DynamicCache(config=self.config), DynamicCache(config=self.config))
        for layer in range(layers):
            key, value = (tensor.flatten(0, 1) for tensor in past[2 * layer : 2 * layer + 2])
            cache.self_attention_cache.update(key, value, layer)
            cache.cross_attention_cache.update(source[2 * layer], source[2 * layer + 1], layer)
            cache.is_updated[layer] = True
        outputs = self.decoder(
            input_ids.flatten(0, 1),
            source[0].transpose(1, 2).flatten(2),  # of which only the shape is read, as its keys are there
            source_attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=True,
        )
        present = [tensor for layer in cache.self_attention_cache.layers for tensor in (layer.keys, layer.values)]
        logits = self.lm_head(outputs.last_hidden_state)
        return [tensor.unflatten(0, input_ids.shape[:2]) for tensor in (logits, *present)]


class Classifier(nn.Module):
    def __init__(self, model: TransformerForSequenceClassification):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids, attention_mask).logits


class Forecaster(nn.Module):
    def __init__(self, model: TransformerForecaster):
        super().__init__()
        self.model = model

    def forward(self, past_values: Tensor) -> Tensor:
        return self.model(past_values).prediction_outputs


class LanguageModel(nn.Module):
    """An LSTM by ONNX's own operator, which takes the lengths of rows, as PyTorch's packing has no counterpart."""

    def __init__(self, model: LSTMForCausalLM):
        super().__init__()
        self.embed_tokens, self.lm_head, self.sizes = model.embed_tokens, model.lm_head, model.config.layer_sizes
        for number, layer in enumerate(model.layers):
            assert isinstance(layer, LSTMLayer)
            self.register_buffer(f"input_{number}", _reorder(layer.weight_ih_l0)[None])
            self.register_buffer(f"recurrent_{number}", _reorder(layer.weight_hh_l0)[None])
            biases = [_reorder(layer.bias_ih_l0), _reorder(layer.bias_hh_l0)]
            self.register_buffer(f"bias_{number}", torch.cat(biases)[None])

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *state: Tensor) -> list[Tensor]:
        """Return logits (B, T, V), and hidden and cell state (B, width) of each layer behind the last real token.

        Args:
            input_ids, attention_mask: (B, T); padding, 0 in the mask, leaves the state as it is.
            state: hidden and cell state, layer by layer.
        """
        rows, width = input_ids.shape
        order = (torch.arange(width) + (attention_mask == 0) * BEHIND).argsort(1)  # real tokens first
        lengths = attention_mask.sum(1).to(torch.int32)
        states = self.embed_tokens(input_ids.gather(1, order)).transpose(0, 1)  # (T, B, W)
        last = []
        for number, size in enumerate(self.sizes):
            weights = [self.get_buffer(f"{name}_{number}") for name in ("input", "recurrent", "bias")]
            output, hidden, cell = torch.onnx.ops.symbolic_multi_out(
                "LSTM",
                [states, *weights, lengths, state[2 * number][None], state[2 * number + 1][None]],
                {"hidden_size": size},
                dtypes=[torch.float32] * 3,
                shapes=[(width, 1, rows, size), (1, rows, size), (1, rows, size)],
                version=OPSET,
            )
            states = output.squeeze(1)  # (T, B, size)
            last += [hidden.squeeze(0), cell.squeeze(0)]
        where = order.argsort(1)[..., None].expand(-1, -1, self.sizes[-1])
        return [self.lm_head(states.transpose(0, 1).gather(1, where)), *last]


def _reorder(gates: Any) -> Tensor:
    """Put the gates (4 * size, ...) into ONNX's order."""
    return torch.cat([gates.detach().chunk(4)[gate] for gate in ONNX_GATES])


def _example(*shape: int | str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, dict[int, str]]:
    """Make an input of a graph: ones of a shape whose changing axes are names, and these."""
    axes = {axis: size for axis, size in enumerate(shape) if isinstance(size, str)}
    return torch.ones([EXAMPLE[size] if isinstance(size, str) else size for size in shape], dtype=dtype), axes


def _seq2seq_graphs(model: Seq2SeqTransformerForConditionalGeneration) -> list[Graph]:
    config = model.config
    heads, head_dim = config.attention_heads, config.d_model // config.attention_heads
    past, present, source = (
        [f"{when}_{part}.{layer}" for layer in range(config.decoder_layers) for part in ("key", "value")]
        for when in ("past", "present", "source")
    )
    source_ids = _example("batch", "source_length", dtype=torch.int64)
    inputs = {
        "input_ids": _example("batch", "beams", "length", dtype=torch.int64),
        "attention_mask": source_ids,
        **dict.fromkeys(past, _example("batch", "beams", heads, "past_length", head_dim)),
        **dict.fromkeys(source, _example("batch", heads, "source_length", head_dim)),
    }
    states = {SOURCE: _example("batch", "source_length", config.d_model)}
    return [
        Graph("encoder", Encoder(model), {"input_ids": source_ids, "attention_mask": source_ids}, [SOURCE]),
        Graph("cross_attention", CrossAttention(model), states, source),
        Graph("decoder", Decoder(model), inputs, ["logits", *present]),
    ]


def _classifier_graphs(model: TransformerForSequenceClassification) -> list[Graph]:
    ids = _example("batch", "length", dtype=torch.int64)
    return [Graph("model", Classifier(model), {"input_ids": ids, "attention_mask": ids}, ["logits"])]


def _language_model_graphs(model: LSTMForCausalLM) -> list[Graph]:
    ids = _example("batch", "length", dtype=torch.int64)
    state = {
        f"{part}.{layer}": _example("batch", size)
        for layer, size in enumerate(model.config.layer_sizes)
        for part in ("hidden", "cell")
    }
    outputs = ["logits", *(f"next_{name}" for name in state)]
    return [Graph("model", LanguageModel(model), {"input_ids": ids, "attention_mask": ids, **state}, outputs)]


def _forecaster_graphs(model: TransformerForecaster) -> list[Graph]:
    config = model.config
    # In float64, as float32 rounds a small wave on a high level before the mean is taken away.
    past = _example("batch", config.context_length, len(config.means or []), dtype=torch.float64)
    return [Graph("model", Forecaster(model), {"past_values": past}, ["prediction_outputs"])]


GRAPHS: dict[str, Callable[[Any], list[Graph]]] = {
    "seq2seq_transformer": _seq2seq_graphs,
    "transformer_classifier": _classifier_graphs,
    "lstm_language_model": _language_model_graphs,
    "transformer_forecaster": _forecaster_graphs,
}


def write(model: PreTrainedModel, task: Task, folder: Path) -> None:
    """Write the graphs of a model, in float32, and what is needed beside them: its config, and what a text needs.

    Args:
        model: one of those in `GRAPHS`.
        folder: to write into.
    """
    model = copy.deepcopy(model).to("cpu", torch.float32).eval()
    # A row of padding only then attends evenly, where other kernels' masks, made of ONNX's operators, give NaN.
    model.set_attn_implementation("eager")
    with (folder / WEIGHTS_FILE).open("wb") as stream:
        weights = SharedWeights(stream)
        for graph in GRAPHS[model.config.model_type](model):
            program = _trace(graph)
            weights.take_from(program)
            onnx_ir.save(program, folder / f"{graph.name}.onnx")
    for path in folder.glob("*.onnx"):
        onnx.checker.check_model(path, full_check=True)
    (folder / "config.json").write_text(model.config.to_json_string(), encoding="utf-8")
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    if task.tokenizer is not None:
        save_tokenizer(task.tokenizer, folder)


def _trace(graph: Graph) -> onnx_ir.Model:
    examples, axes = zip(*graph.inputs.values(), strict=True)
    takes_more = any(
        parameter.kind is parameter.VAR_POSITIONAL
        for parameter in inspect.signature(graph.module.forward).parameters.values()
    )
    with _silence(), torch.no_grad():
        exported = torch.onnx.export(
            graph.module.eval(),
            tuple(example.clone() for example in examples),  # as one tensor given twice would be one input
            input_names=list(graph.inputs),
            output_names=graph.outputs,
            dynamic_shapes=(*axes[:2], axes[2:]) if takes_more else axes,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert exported is not None
    program = exported.model
    graph_parts: list[Any] = [*program.graph.all_nodes(), *program.graph.initializers.values()]
    for part in (program, program.graph, *graph_parts):
        part.metadata_props.clear()  # the source lines that each came from, with paths of this machine
    return program


class SharedWeights:
    """A file of tensors, each there once, from which several graphs read."""

    def __init__(self, stream: BinaryIO):
        self.stream = stream
        self.offsets: dict[bytes, int] = {}  # by SHA-256

    def take_from(self, program: onnx_ir.Model) -> None:
        """Move the large weights of a graph into the file."""
        for value in program.graph.initializers.values():
            tensor = value.const_value
            assert tensor is not None
            content = tensor.tobytes()
            if len(content) < SMALLEST_SHARED:
                continue
            value.const_value = onnx_ir.ExternalTensor(
                WEIGHTS_FILE,
                self._place(content),
                len(content),
                tensor.dtype,
                shape=onnx_ir.Shape(tensor.shape.numpy()),
                name=value.name or "",
            )

    def _place(self, content: bytes) -> int:
        key = hashlib.sha256(content).digest()
        if key not in self.offsets:
            alignment = LARGE_ALIGNMENT if len(content) > LARGE else SMALL_ALIGNMENT
            self.stream.seek(-self.stream.tell() % alignment, os.SEEK_CUR)
            self.offsets[key] = self.stream.tell()
            self.stream.write(content)
        return self.offsets[key]


@contextmanager
def _silence() -> Iterator[None]:
    """Hold back what PyTorch says of its own parts and of operators that are not there."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
