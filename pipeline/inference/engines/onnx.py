"""Models whose arithmetic onnxruntime does, by the graphs that `exporting/onnx.py` writes.

Each is the model's own class with graphs in place of its layers. So all that is around them is the model's: the search
of `generate` with every setting, the shift of labels, the checks of inputs. Only the numbers come from elsewhere.

Shapes: B batch, K beams of each row, S source length, T new tokens, H heads, E width of a head, V vocabulary.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as faults
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    CausalLMOutputWithPast,
    SequenceClassifierOutput,
)

from pipeline.errors import ConfigError, one_line
from pipeline.models.modeling_classifier import TransformerForSequenceClassification
from pipeline.models.modeling_forecaster import ForecasterOutput, TransformerForecaster
from pipeline.models.modeling_lstm import LSTMForCausalLM, LSTMState
from pipeline.models.modeling_seq2seq import Seq2SeqTransformerForConditionalGeneration

CUDA = "CUDAExecutionProvider"
TORCH = "use --engine torch"
REFUSED = (
    *("inputs_embeds", "decoder_inputs_embeds", "decoder_attention_mask", "source_rows", "target_rows"),
    *("output_attentions", "output_hidden_states"),
)
ELEMENT_TYPES = {torch.float32: 1, torch.int64: 7, torch.float64: 11}  # onnx.TensorProto.DataType
UNREADABLE = (
    faults.Fail,
    faults.InvalidArgument,
    faults.InvalidGraph,
    faults.InvalidProtobuf,
    faults.NoSuchFile,
    faults.NotImplemented,
    faults.RuntimeException,
)


class Graph:
    """A graph in an onnxruntime session, which takes and gives tensors without copying them."""

    def __init__(self, path: Path):
        """Raise ConfigError for a file that onnxruntime does not take."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        providers = [name for name in (CUDA, "CPUExecutionProvider") if name in onnxruntime.get_available_providers()]
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers)
        except UNREADABLE as error:
            raise ConfigError(f"{path}: onnxruntime cannot load it: {one_line(error)}; export again") from error
        self.device = torch.device("cuda", 0) if CUDA in self.session.get_providers() else torch.device("cpu")
        self.outputs = [output.name for output in self.session.get_outputs()]

    def __call__(self, **inputs: Tensor) -> list[Tensor]:
        """Compute all outputs, in their order, on the graph's device."""
        binding = self.session.io_binding()
        memory = []  # which must live until the end
        for name, tensor in inputs.items():
            # Integers stay with the CPU, where onnxruntime reads them: most are shapes or select something.
            tensor = tensor.to(self.device if tensor.is_floating_point() else "cpu").contiguous()
            memory.append(tensor if tensor.numel() else tensor.new_empty(1))  # an empty tensor has no address
            binding.bind_input(
                name,
                tensor.device.type,
                tensor.device.index or 0,
                ELEMENT_TYPES[tensor.dtype],
                tuple(tensor.shape),
                memory[-1].data_ptr(),
            )
        for name in self.outputs:
            binding.bind_output(name, self.device.type, self.device.index or 0)
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()  # onnxruntime has a stream of its own
        self.session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return [torch.from_dlpack(output) for output in binding.get_outputs()]


class OnnxModel(PreTrainedModel):
    """A model without weights: its graphs have them."""

    # As in the contract in `base`: these models have no end of positions.
    max_positions = (None, None)
    gives_attentions = False

    def __init__(self, config: PreTrainedConfig, generation: GenerationConfig | None, *graphs: Graph):
        # Not the constructor of the class whose place this takes, which makes the layers.
        PreTrainedModel.__init__(self, copy.deepcopy(config))
        self.generation_config = copy.deepcopy(generation)
        self.graphs = graphs
        self.eval()

    @property
    def device(self) -> torch.device:
        return self.graphs[0].device

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32


class OnnxEncoder(nn.Module):
    main_input_name = "input_ids"  # asked by `generate`

    def __init__(self, graph: Graph):
        super().__init__()
        self.graph = graph

    def forward(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        rows: Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutput:
        """Encode `input_ids` (B, S) under `attention_mask` (B, S) into (B, S, D)."""
        _refuse(inputs_embeds=inputs_embeds, source_rows=rows, **kwargs)
        assert input_ids is not None
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        return BaseModelOutput(self.graph(input_ids=input_ids, attention_mask=attention_mask.long())[0])


class OnnxDecoder(nn.Module):
    """Gives logits (B * K, T, V) where the model's own decoder gives hidden states."""

    def __init__(self, config: PreTrainedConfig, cross_attention: Graph, graph: Graph):
        super().__init__()
        self.config, self.cross_attention, self.graph = config, cross_attention, graph

    def forward(
        self,
        input_ids: Tensor | None,  # (B * K, T)
        source: Tensor,  # (B, S, D)
        attention_mask: Tensor | None = None,
        source_attention_mask: Tensor | None = None,  # (B, S)
        past_key_values: EncoderDecoderCache | None = None,
        use_cache: bool = False,
        inputs_embeds: Tensor | None = None,
        rows: Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Score what follows each target token; its keys and values go into the cache."""
        cache = self._new_cache() if past_key_values is None else past_key_values
        target, sources = (_layers(part) for part in (cache.self_attention_cache, cache.cross_attention_cache))
        _refuse(decoder_attention_mask=attention_mask, decoder_inputs_embeds=inputs_embeds, target_rows=rows, **kwargs)
        assert input_ids is not None
        if not cache.is_updated.get(0):
            _put(sources, self.cross_attention(last_hidden_state=source))
            cache.is_updated = dict.fromkeys(range(len(sources)), True)
        if source_attention_mask is None:
            source_attention_mask = source.new_ones(source.shape[:2])
        sizes = (source.shape[0], input_ids.shape[0] // source.shape[0])
        if not target[0].is_initialized:
            nothing = source.new_empty(*input_ids.shape[:1], *sources[0].keys.shape[1:2], 0, sources[0].keys.shape[3])
            _put(target, [nothing, nothing] * len(target))
        logits, *present = self.graph(
            input_ids=input_ids.unflatten(0, sizes),
            attention_mask=source_attention_mask.long(),
            **{name: tensor.unflatten(0, sizes) for name, tensor in _named("past", target)},
            **dict(_named("source", sources)),
        )
        _put(target, [tensor.flatten(0, 1) for tensor in present])
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=logits.flatten(0, 1), past_key_values=cache if use_cache else None
        )

    def _new_cache(self) -> EncoderDecoderCache:
        return EncoderDecoderCache(DynamicCache(config=self.config), DynamicCache(config=self.config))


def _layers(cache: Cache) -> list[DynamicLayer]:
    """Raise ConfigError for a cache that does not grow with the target."""
    if not all(type(layer) is DynamicLayer for layer in cache.layers):
        raise ConfigError(f"cache_implementation: the onnx engine has a growing cache only; leave it out, or {TORCH}")
    return cache.layers


def _named(when: str, layers: list[DynamicLayer]) -> Iterator[tuple[str, Tensor]]:
    for number, layer in enumerate(layers):
        yield f"{when}_key.{number}", layer.keys
        yield f"{when}_value.{number}", layer.values


def _put(layers: list[DynamicLayer], keys_and_values: list[Tensor]) -> None:
    """Let a cache hold these, layer by layer, in place of what it held."""
    for layer, key, value in zip(layers, keys_and_values[::2], keys_and_values[1::2], strict=True):
        layer.lazy_initialization(key, value)
        layer.keys, layer.values = key, value


def _refuse(**inputs: Any) -> None:
    """Raise ConfigError for what the graphs do not take or give."""
    for name, value in inputs.items():
        if name in REFUSED and value is not None and value is not False:
            raise ConfigError(f"{name}: the onnx engine has no such thing; leave it out, or {TORCH}")


class OnnxSeq2Seq(OnnxModel, Seq2SeqTransformerForConditionalGeneration):
    shares_source = False  # type: ignore[assignment]  # for which beams need the mask that the graphs do not take

    def __init__(self, config: PreTrainedConfig, generation: GenerationConfig | None, *graphs: Graph):
        super().__init__(config, generation, *graphs)
        encoder, cross_attention, decoder = graphs
        self.encoder = OnnxEncoder(encoder)  # type: ignore[assignment]
        self.decoder = OnnxDecoder(self.config, cross_attention, decoder)  # type: ignore[assignment]
        self.lm_head = nn.Identity()  # type: ignore[assignment]  # is in the decoder's graph


class OnnxClassifier(OnnxModel, TransformerForSequenceClassification):
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs) -> SequenceClassifierOutput:
        """Score every class, (B, C), as the model does; tasks make a loss of it."""
        _refuse(**kwargs)
        if attention_mask is None:
            attention_mask = input_ids.ne(self.config.pad_token_id)
        (logits,) = self.graphs[0](input_ids=input_ids, attention_mask=attention_mask.long())
        return SequenceClassifierOutput(logits=logits)


class OnnxLanguageModel(OnnxModel, LSTMForCausalLM):
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: LSTMState | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Score every next token, (B, T, V), from a state on, as the model does; tasks make a loss of it."""
        _refuse(**kwargs)
        rows, width = input_ids.shape
        if width == 0:
            raise ValueError("input_ids has no token: give a prompt of one at least")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask[:, -width:].long()
        if not bool(mask.any(1).all()):
            raise ValueError("attention_mask: a row has no real token; leave it out of the batch")
        if past_key_values is None:
            zeros = [torch.zeros(rows, size) for size in self.config.layer_sizes]
            past_key_values = LSTMState(zeros, zeros)
        state = {f"hidden.{number}": tensor for number, tensor in enumerate(past_key_values.hidden)}
        state |= {f"cell.{number}": tensor for number, tensor in enumerate(past_key_values.cell)}
        logits, *following = self.graphs[0](input_ids=input_ids, attention_mask=mask, **state)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        after = LSTMState(following[::2], following[1::2], past_key_values.length + width)
        return CausalLMOutputWithPast(logits=logits, past_key_values=after if use_cache else None)


class OnnxForecaster(OnnxModel, TransformerForecaster):
    def forward(self, past_values: Tensor, future_values: Tensor | None = None, **kwargs) -> ForecasterOutput:
        """Forecast (B, H, C), in the units of the data, and judge the forecast, as the model does."""
        _refuse(**kwargs)
        self._check(past_values, future_values)
        (forecast,) = self.graphs[0](past_values=past_values[:, -self.config.context_length :].double())
        loss = losses = None
        if future_values is not None:
            stds = torch.tensor(self.config.stds, device=forecast.device)
            losses = ((forecast - future_values) / stds).square().float()
            loss = losses.mean()
        dtype = torch.promote_types(past_values.dtype, torch.float32)
        return ForecasterOutput(loss=loss, prediction_outputs=forecast.to(dtype), losses=losses)


# Type of a model -> what stands in for it, and its graphs.
MODELS: dict[str, tuple[type[OnnxModel], tuple[str, ...]]] = {
    "seq2seq_transformer": (OnnxSeq2Seq, ("encoder", "cross_attention", "decoder")),
    "transformer_classifier": (OnnxClassifier, ("model",)),
    "lstm_language_model": (OnnxLanguageModel, ("model",)),
    "transformer_forecaster": (OnnxForecaster, ("model",)),
}


class OnnxEngine:
    """What the table of engines names: it loads the model's own class, with graphs in place of its layers."""

    @staticmethod
    def load(folder: Path, config: PreTrainedConfig, generation: GenerationConfig | None) -> OnnxModel:
        """Load the graphs in a folder.

        Args:
            config, generation: as `load_task` gives them for the checkpoint.

        Raises:
            ConfigError: for another type of model, and for files that onnxruntime does not take.
        """
        if config.model_type not in MODELS:
            raise ConfigError(f"--engine onnx: it cannot run {config.model_type!r}, only {', '.join(MODELS)}; {TORCH}")
        model, names = MODELS[config.model_type]
        return model(config, generation, *(Graph(folder / f"{name}.onnx") for name in names))
