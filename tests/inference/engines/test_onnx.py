"""The graphs give the numbers of the model, for every size of batch and length, and `generate` the same tokens."""

import shutil
from functools import partial
from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import GenerationConfig
from transformers.generation import GenerationMode

from pipeline.decoding.search import search_of
from pipeline.errors import ConfigError
from pipeline.inference.hypotheses import Wanted, find_hypotheses
from pipeline.models.configuration_classifier import TransformerClassifierConfig
from pipeline.models.configuration_forecaster import TransformerForecasterConfig
from pipeline.models.configuration_lstm import LSTMConfig
from pipeline.models.configuration_seq2seq import Seq2SeqTransformerConfig
from pipeline.models.modeling_classifier import TransformerForSequenceClassification
from pipeline.models.modeling_forecaster import TransformerForecaster
from pipeline.models.modeling_lstm import LSTMForCausalLM
from pipeline.models.modeling_seq2seq import Seq2SeqTransformerForConditionalGeneration

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from pipeline.exporting.onnx import GRAPHS, WEIGHTS_FILE, write
from pipeline.inference.engines.base import Engine
from pipeline.inference.engines.onnx import MODELS, OnnxEngine

TINY = {"d_model": 16, "encoder_layers": 2, "attention_heads": 2, "ffn_dim": 32}
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "no cache": {"use_cache": False},
    "beams": {"num_beams": 4, "length_penalty": 0.6},
    "beams, early": {"num_beams": 3, "early_stopping": True, "no_repeat_ngram_size": 2},
    "several": {"num_beams": 4, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "top_k": 10, "temperature": 0.6, "num_return_sequences": 2},
    "sampled beams": {"do_sample": True, "num_beams": 2},
}
NO_TEXTS: Any = SimpleNamespace(tokenizer=None)
assert_close = partial(torch.testing.assert_close, atol=1e-4, rtol=1e-4)  # of logits that are about ten


def pair(model, folder, **generation):
    """The model with weights that tell tokens apart, and its engine."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    config = None
    if model.can_generate():
        config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0, max_new_tokens=9, **generation)
        model.generation_config = config
    write(model.eval(), NO_TEXTS, folder)
    return model, OnnxEngine.load(folder, model.config, config)


@pytest.fixture(scope="module")
def lstm_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lstm")


@pytest.fixture(scope="module")
def lstm(lstm_folder):
    torch.manual_seed(0)
    config = LSTMConfig(vocab_size=40, embedding_size=12, hidden_size=16)
    return pair(LSTMForCausalLM(config), lstm_folder)


@pytest.fixture(scope="module")
def seq2seq(tmp_path_factory):
    torch.manual_seed(0)
    config = Seq2SeqTransformerConfig(vocab_size=40, decoder_layers=2, **TINY)
    model = Seq2SeqTransformerForConditionalGeneration(config)
    return pair(model, tmp_path_factory.mktemp("seq2seq"), decoder_start_token_id=1)


def answers(model, settings, input_ids, **inputs):
    torch.manual_seed(1)
    generation = GenerationConfig(**model.generation_config.to_dict() | settings)
    return model.generate(input_ids, generation_config=generation, **inputs)


# An LSTM


PADDED = torch.tensor([[2, 5, 6, 7, 8], [0, 0, 2, 11, 12], [0, 9, 0, 3, 0]])


@torch.no_grad()
@pytest.mark.parametrize("input_ids", [PADDED[:1, :1], PADDED[:1], PADDED, PADDED.repeat(4, 30)])
def test_an_lstm_reads_past_padding_and_goes_on_from_its_state(lstm, input_ids):
    mask = input_ids.ne(0).long()
    states: list = [None, None]
    for number, part in enumerate((input_ids, input_ids)):
        so_far = mask if number == 0 else torch.cat([mask, mask], 1)
        outputs = [
            model(part, attention_mask=so_far, past_key_values=state, use_cache=True)
            for model, state in zip(lstm, states, strict=True)
        ]
        logits = [output.logits * mask[..., None] for output in outputs]
        assert_close(*logits)
        states = [output.past_key_values for output in outputs]
        assert states[0].get_seq_length() == states[1].get_seq_length()
        for name in ("hidden", "cell"):
            assert_close(*(getattr(state, name) for state in states))


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_an_lstm_goes_on_with_the_same_tokens(lstm, settings):
    mask = PADDED.ne(0).long()
    assert torch.equal(*(answers(model, settings, PADDED, attention_mask=mask) for model in lstm))


def test_wrong_inputs_are_refused_as_by_the_model(lstm):
    for inputs in ({"input_ids": PADDED[:, :0]}, {"input_ids": PADDED, "attention_mask": torch.zeros_like(PADDED)}):
        messages = []
        for model in lstm:
            with pytest.raises(ValueError) as error:
                model(**inputs)
            messages.append(str(error.value)[:20])
        assert messages[0] == messages[1]


def test_an_engine_only_predicts_and_has_no_weights(lstm):
    model, engine = lstm
    assert not engine.training and not list(engine.parameters())
    assert all(hasattr(engine, name) for name in Engine.__annotations__), "the contract"
    assert engine.can_generate() and engine.device == torch.device("cpu")
    assert engine.config is not model.config and engine.config.to_dict() == model.config.to_dict()


@pytest.mark.parametrize("file", ["model.onnx", WEIGHTS_FILE])
@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], None])
def test_damaged_files_are_named(lstm, lstm_folder, tmp_path, file, damage):
    model, _ = lstm
    shutil.copytree(lstm_folder, tmp_path, dirs_exist_ok=True)
    if damage is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(damage((tmp_path / file).read_bytes()))
    with pytest.raises(ConfigError, match=r"model\.onnx: onnxruntime cannot load it: .*export again"):
        OnnxEngine.load(tmp_path, model.config, model.generation_config)


def test_another_type_of_model_is_refused(lstm, tmp_path):
    from transformers import MarianConfig

    with pytest.raises(ConfigError, match=r"cannot run 'marian', only seq2seq_transformer, .*; use --engine torch"):
        OnnxEngine.load(tmp_path, MarianConfig(), None)


def test_what_is_exported_can_be_loaded():
    assert GRAPHS.keys() == MODELS.keys()


# An encoder-decoder


SOURCES = torch.tensor([[5, 6, 7, 8, 9, 2], [10, 11, 2, 0, 0, 0], [2, 0, 0, 0, 0, 0]])  # the last one is empty


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("length", [1, 2, 60])
def test_targets_get_the_same_scores(seq2seq, rows, length):
    sources = SOURCES[:rows].repeat(1, 1 if rows == 3 else 20)
    labels = torch.arange(rows * length).view(rows, length) % 37 + 3
    labels[-1, length // 2 + 1 :] = -100
    ours, theirs = (model(input_ids=sources, labels=labels) for model in seq2seq)
    assert_close(theirs.logits, ours.logits)
    assert_close(theirs.loss, ours.loss)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_same_tokens_by_any_search(seq2seq, settings, rows):
    model, engine = seq2seq
    answered = answers(engine, settings, SOURCES[:rows])
    assert torch.equal(answered, answers(model, settings, SOURCES[:rows]))
    generation = GenerationConfig(**model.generation_config.to_dict() | settings)
    is_ours = generation.get_generation_mode() in (GenerationMode.GREEDY_SEARCH, GenerationMode.BEAM_SEARCH)
    search = search_of(model, generation)
    assert (search is not None) is (is_ours and generation.use_cache is not False)
    if search is not None:
        assert torch.equal(answered, answers(model, settings, SOURCES[:rows], custom_generate=search))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("inputs", "name"),
    [
        ({"output_hidden_states": True}, "output_hidden_states"),
        ({"decoder_attention_mask": torch.ones(3, 2)}, "decoder_attention_mask"),
        ({"decoder_inputs_embeds": torch.ones(3, 2, 16)}, "decoder_inputs_embeds"),
    ],
)
def test_what_graphs_do_not_take_is_refused(seq2seq, inputs, name):
    inputs = {"input_ids": SOURCES, "decoder_input_ids": SOURCES[:, :2]} | inputs
    with pytest.raises(ConfigError, match=rf"{name}: .*use --engine torch"):
        seq2seq[1](**inputs)


@pytest.mark.slow  # exports a model
def test_beams_are_searched_as_transformers_does(seq2seq):
    """Our own search hands the decoder a mask, which the graphs do not take."""
    generation = GenerationConfig(num_beams=2)
    assert [search_of(side, generation) is None for side in seq2seq] == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize("settings", ["greedy", "beams", "sampling", "sampled beams"])
def test_hypotheses_are_those_of_the_model(seq2seq, task, settings):
    """With their scores, the probabilities of their tokens, and a seed of sampling; but no alignments."""
    model, engine = seq2seq
    features = task.encode({"source": ["a b c d", "h", "g f e d c b a h"], "row": [0, 1, 2]})
    generation = GenerationConfig(**model.generation_config.to_dict() | SETTINGS[settings])
    wanted = Wanted(num_best=1 if settings == "greedy" else 2, scores=True, token_probabilities=True, seed=3)
    ours, theirs = (
        find_hypotheses(side, task, features, task.collate(features), generation, wanted) for side in seq2seq
    )
    for one, other in zip(chain(*ours), chain(*theirs), strict=True):
        assert (one.text, one.tokens) == (other.text, other.tokens)
        assert other.score == pytest.approx(one.score, abs=1e-4)
        assert other.probabilities == pytest.approx(one.probabilities, abs=1e-4)
    mbr = Wanted(mbr=3, seed=3)
    ours, theirs = (find_hypotheses(side, task, features, task.collate(features), generation, mbr) for side in seq2seq)
    assert theirs == ours
    with pytest.raises(ConfigError, match=r"alignments: a OnnxSeq2Seq gives no attentions; .* take --engine torch"):
        find_hypotheses(engine, task, features, task.collate(features), generation, Wanted(alignments=True))


@pytest.mark.slow
def test_a_cache_that_does_not_grow_is_refused(seq2seq):
    with pytest.raises(ConfigError, match=r"cache_implementation: .*use --engine torch"):
        answers(seq2seq[1], {"cache_implementation": "static"}, SOURCES)


# A classifier and a forecaster


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("pooling", ["mean", "max", "first"])
def test_a_classifier_scores_texts_of_any_length_and_no_text(tmp_path, pooling):
    torch.manual_seed(0)
    config = TransformerClassifierConfig(vocab_size=40, num_labels=3, conv_kernels=[2, 3], pooling=pooling, **TINY)
    model, engine = pair(TransformerForSequenceClassification(config), tmp_path)
    nothing = torch.zeros(1, 6, dtype=torch.int64)
    for texts in (SOURCES[:1, :1], SOURCES, SOURCES.repeat(2, 10), torch.cat([SOURCES, nothing])):
        assert_close(engine(texts).logits, model(texts).logits)
    assert not engine.can_generate()


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("taken_out", ["last", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_forecaster_keeps_small_waves_on_a_high_level(tmp_path, dtype, taken_out):
    torch.manual_seed(0)
    level = 1e8 if dtype == torch.float64 else 10.0
    config = TransformerForecasterConfig(
        **{"context_length": 12, "prediction_length": 4, "patch_length": 4, "patch_stride": 2, "linear_forecast": True},
        **{"series": ["a", "b"], "means": [level, 0.0], "stds": [2.0, 3.0], "level": taken_out, **TINY},
    )
    forecaster = TransformerForecaster(config)
    torch.nn.init.normal_(forecaster.head.weight, std=0.1)  # with `last` it begins with zeros
    model, engine = pair(forecaster, tmp_path)
    for rows, length in ((1, 12), (3, 12), (2, 30)):
        past = torch.randn(rows, length, 2, dtype=dtype) + torch.tensor([level, 0.0], dtype=dtype)
        future = torch.randn(rows, 4, 2, dtype=dtype) + torch.tensor([level, 0.0], dtype=dtype)
        ours, theirs = (side(past_values=past, future_values=future) for side in (model, engine))
        assert theirs.prediction_outputs.dtype == dtype
        torch.testing.assert_close(theirs.prediction_outputs, ours.prediction_outputs, atol=1e-5, rtol=0)
        torch.testing.assert_close(theirs.losses, ours.losses, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=r"b \(series 1\) is nan"):
        engine(past_values=torch.full((1, 12, 2), float("nan")).index_fill(2, torch.tensor(0), 1.0))
