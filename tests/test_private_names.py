"""What this project expects of private names of transformers' models and generation, and of accelerate.

A library may rename or drop a private name in any release. An override of the old name is then never called, and an
attribute never read, without an error. tests/training/test_trainer_internals.py has the names of Trainer, and
tests/data/test_batch_loader.py those of torch.
"""

import ast
import inspect

import pytest
import torch
import transformers
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import fsdp_utils
from accelerate.utils.constants import FSDP_MODEL_NAME
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env
from torch.autograd import forward_ad
from torch.nn.modules import module
from transformers import AutoModelForSeq2SeqLM, MarianConfig, NllbTokenizer, Pipeline, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.generation import GenerationMixin
from transformers.utils.output_capturing import OutputRecorder, recursively_install_hooks

from pipeline.decoding.search import beam_search, greedy_search
from pipeline.models.configuration_lstm import LSTMConfig
from pipeline.models.modeling_lstm import LSTMForCausalLM, LSTMState
from pipeline.models.modeling_seq2seq import Seq2SeqTransformerForConditionalGeneration
from pipeline.signals import is_launched_by_accelerate
from tests.conftest import ROOT
from tests.upstream import is_private, names_in, overrides, record_calls, what_changed

CALLABLES = [
    # Overridden or called by the models and the search.
    (GenerationMixin, "_expand_inputs_for_generation", "expand_size is_encoder_decoder input_ids model_kwargs"),
    (GenerationMixin, "_supports_default_dynamic_cache", ""),
    (PreTrainedModel, "_init_weights", "module"),
    (NllbTokenizer, "_build_translation_inputs", "raw_inputs return_tensors src_lang tgt_lang extra_kwargs"),
    (PreTrainedModel, "_resize_token_embeddings", "new_num_tokens pad_to_multiple_of mean_resizing"),
    (PreTrainedModel, "_get_resized_embeddings", "old_embeddings new_num_tokens pad_to_multiple_of mean_resizing"),
    (PreTrainedModel, "mark_tied_weights_as_initialized", "loading_info"),
    (module, "_has_any_global_hook", ""),
    (EncoderDecoderCache, "batch_select_indices", "indices"),
    (DynamicCache, "batch_select_indices", "indices"),
    (DynamicCache, "reorder_cache", "beam_idx"),
    # Overridden by TranslationPipeline.
    (Pipeline, "_sanitize_parameters", "pipeline_parameters"),
    (Pipeline, "_forward", "input_tensors forward_parameters"),
    (Pipeline, "preprocess", "input_ preprocess_parameters"),
    (Pipeline, "postprocess", "model_outputs postprocess_parameters"),
]  # fmt: skip
READ = [  # where the library reads what the models set
    (GenerationMixin, "_is_stateful"),
    (GenerationMixin, "is_compileable"),
    (GenerationMixin, "_reorder_cache"),
    (PreTrainedModel, "loss_type"),
    (PreTrainedModel, "_can_record_outputs"),
    (PreTrainedModel, "_keys_to_ignore_on_save"),
    (PreTrainedModel, "_no_split_modules"),
    (PreTrainedModel, "_supports_flash_attn"),
    (PreTrainedModel, "_supports_flex_attn"),
    (PreTrainedModel, "_supports_sdpa"),
    (PreTrainedModel, "_tied_weights_keys"),
    *((transformers.pipeline, f"_load_{kind}") for kind in ("tokenizer", "processor", "image_processor")),
    (transformers.pipeline, "_load_feature_extractor"),
    (recursively_install_hooks, "target_class"),
    (recursively_install_hooks, "index"),
    (recursively_install_hooks, "layer_name"),
]
CLASS_ATTRIBUTES = [
    (AutoModelForSeq2SeqLM, "_model_mapping"),
    (PreTrainedModel, "_auto_class"),
    (PreTrainedModel, "_can_compile_fullgraph"),  # declared; transformers 5.23 itself reads it nowhere
    (PreTrainedModel, "_can_record_outputs"),
    (PreTrainedModel, "_is_stateful"),
    (PreTrainedModel, "_keys_to_ignore_on_save"),
    (PreTrainedModel, "_no_split_modules"),
    (PreTrainedModel, "_supports_flash_attn"),
    (PreTrainedModel, "_supports_flex_attn"),
    (PreTrainedModel, "_supports_sdpa"),
    (PreTrainedModel, "_tied_weights_keys"),
    (torch, "_C"),
    (torch._C, "_autograd"),
    (torch._C, "_are_functorch_transforms_active"),
    (torch._C._autograd, "_get_current_graph_task_keep_graph"),
    (forward_ad, "_current_level"),
    *((Pipeline, f"_load_{kind}") for kind in ("tokenizer", "processor", "image_processor", "feature_extractor")),
    (PreTrainedConfig, "_attn_implementation"),
]


@pytest.mark.parametrize("owner, name, parameters", CALLABLES, ids=[f"{o.__name__}.{name}" for o, name, _ in CALLABLES])
def test_a_method_is_as_expected(owner, name, parameters):
    assert what_changed(owner, name, parameters) is None


@pytest.mark.parametrize("reader, name", READ, ids=[f"{each.__name__}-{name}" for each, name in READ])
def test_a_name_is_read(reader, name):
    """To set one that the library does not read would change nothing."""
    names = names_in(reader)
    assert name in names and "_made_up" not in names


def test_every_private_name_of_the_models_is_in_a_table():
    """Also of models to come: those that a library's class has as well, or that are read of another object."""
    known = {name for _, name, *_ in (*CALLABLES, *READ, *CLASS_ATTRIBUTES)}
    theirs = {*dir(PreTrainedModel), *dir(GenerationMixin), *dir(Pipeline), *dir(PreTrainedConfig)}
    paths = [*(ROOT / "pipeline" / "models").glob("*.py"), *(ROOT / "pipeline" / "decoding").glob("*.py")]
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    names = {name for node in nodes for name in names_of(node)}
    used = {name for name in names if is_private(name) and (name in theirs or name not in own)}
    assert len(used) > 10 and used <= known


def names_of(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Attribute):
        return [node.attr]
    if isinstance(node, ast.FunctionDef):
        return [node.name]
    if isinstance(node, ast.ClassDef):
        targets = [target for line in node.body if isinstance(line, ast.Assign) for target in line.targets]
        return [target.id for target in targets if isinstance(target, ast.Name)]
    return []


def test_a_stateful_model_takes_no_assistant():
    model = LSTMForCausalLM(LSTMConfig(vocab_size=9, embedding_size=4, hidden_size=4)).eval()
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        model.generate(torch.ones(1, 4, dtype=torch.long), prompt_lookup_num_tokens=2, max_new_tokens=3)


def test_a_cache_is_asked_whether_it_can_be_compiled(monkeypatch):
    model = LSTMForCausalLM(LSTMConfig(vocab_size=9, embedding_size=4, hidden_size=4)).eval()
    ids = torch.ones(1, 4, dtype=torch.long)
    state = model(ids[:, :2]).past_key_values
    monkeypatch.delattr(LSTMState, "is_compileable")
    with pytest.raises(AttributeError, match="is_compileable"):
        model.generate(ids, past_key_values=state, max_new_tokens=3)


def test_what_a_recorder_of_outputs_takes():
    assert [*inspect.signature(OutputRecorder).parameters][:3] == ["target_class", "index", "layer_name"]


def test_a_model_keeps_its_type_of_loss(make_model):
    models = [make_model(), LSTMForCausalLM(LSTMConfig(vocab_size=9, embedding_size=4, hidden_size=4))]
    assert [model.loss_type for model in models] == ["ForMaskedLM", "ForCausalLM"]


@pytest.mark.parametrize("owner, name", CLASS_ATTRIBUTES, ids=[name for _, name in CLASS_ATTRIBUTES])
def test_an_attribute_is_there(owner, name):
    assert hasattr(owner, name)


def test_each_override_of_generation_is_called(make_model, batch, monkeypatch):
    """In transformers' own beam search; a made-up one beside them is not."""
    for cls in (GenerationMixin, Seq2SeqTransformerForConditionalGeneration):
        monkeypatch.setattr(cls, "_made_up", lambda self: None, raising=False)
    names = overrides(Seq2SeqTransformerForConditionalGeneration, GenerationMixin) - {"_init_weights"}
    assert names >= {"_expand_inputs_for_generation", "generate", "_made_up"}
    names.add("_reorder_cache")  # which a model may have, and GenerationMixin has not
    calls = record_calls(monkeypatch, Seq2SeqTransformerForConditionalGeneration, names)
    model = make_model()
    model.generate(batch["input_ids"], num_beams=2, max_new_tokens=4)
    assert names - {*calls} == {"_made_up"}


def test_the_cache_of_the_lstm_is_its_own(monkeypatch):
    calls = record_calls(monkeypatch, LSTMForCausalLM, {"_supports_default_dynamic_cache", "_init_weights"})
    model = LSTMForCausalLM(LSTMConfig(vocab_size=9, embedding_size=4, hidden_size=4)).eval()
    model.generate(torch.ones(1, 2, dtype=torch.long), max_new_tokens=2)
    assert {*calls} == {"_supports_default_dynamic_cache", "_init_weights"}


@pytest.mark.parametrize("search, beams", [(greedy_search, 1), (beam_search, 2)])
def test_a_search_of_ones_own_gets_what_it_needs(make_model, batch, search, beams):
    """`generate` calls a callable `custom_generate` with what it prepared, and returns what that returns."""
    received = {}

    def custom(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        received.update(kwargs)
        return search(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs)

    model = make_model()
    options = {"num_beams": beams, "max_new_tokens": 4}
    ids = model.generate(batch["input_ids"], custom_generate=custom, **options)
    assert torch.equal(ids, model.generate(batch["input_ids"], **options))
    assert len(received["encoder_outputs"].last_hidden_state) == len(received["attention_mask"]) == 2


def test_the_kernel_is_in_the_config(make_model):
    model = make_model()
    for kernel in ("eager", "sdpa"):
        model.set_attn_implementation(kernel)
        assert model.config._attn_implementation == model.decoder.config._attn_implementation == kernel


def test_auto_classes():
    assert MarianConfig in AutoModelForSeq2SeqLM._model_mapping
    assert LSTMConfig not in AutoModelForSeq2SeqLM._model_mapping
    assert Seq2SeqTransformerForConditionalGeneration._auto_class == "AutoModelForSeq2SeqLM"
    assert PreTrainedModel._auto_class is None


def test_fsdp_saves_the_weights_a_second_time_under_this_name():
    """Which `save_training_state` removes, as model.safetensors has them."""
    assert FSDP_MODEL_NAME == "pytorch_model_fsdp"
    assert 'f"{FSDP_MODEL_NAME}.bin"' in inspect.getsource(fsdp_utils.save_fsdp_model)


@pytest.mark.parametrize("options", [[], ["--num_processes", "2", "--multi_gpu"]])
def test_accelerate_launch_sets_the_variable_it_is_known_by(monkeypatch, options):
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args([*options, "script.py"]))
    environment = prepare_multi_gpu_env(arguments) if options else prepare_simple_launcher_cmd_env(arguments)[1]
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    assert not is_launched_by_accelerate()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", environment["ACCELERATE_MIXED_PRECISION"])
    assert is_launched_by_accelerate()
