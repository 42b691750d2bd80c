"""The files of a model that are published, in its own form and as a stock class."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, MarianConfig, MarianMTModel, pipeline

from pipeline.config import HubConfig
from pipeline.errors import ConfigError
from pipeline.exporting import stock
from pipeline.manifest import describe
from pipeline.models.configuration_classifier import TransformerClassifierConfig
from pipeline.models.configuration_forecaster import TransformerForecasterConfig
from pipeline.models.configuration_lstm import LSTMConfig
from pipeline.models.configuration_seq2seq import Seq2SeqTransformerConfig
from pipeline.publishing.forms import check_form, is_published, is_replaced, list_files, make_form
from pipeline.tasks.trained_model import load_trained
from tests.publishing.samples import SEARCHED
from tokenizer.training import train

STOCK = HubConfig(model_id="me/x", form="transformers")
WITH_PIPELINE = HubConfig(model_id="me/x", form="transformers", with_pipeline=True)
OTHERS = {"vocab_size": 40, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "pad_token_id": 0}
OTHERS |= {"eos_token_id": 2, "decoder_start_token_id": 0, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}


@pytest.fixture
def save_model(make_model, tmp_path):
    """Saves a small random model with a tokenizer and a card in a folder."""

    def save(model=None, **changes) -> Path:
        tokenizer = train(["a b c d"] * 2, "word", 40, max_length=16)
        folder, model = tmp_path / "model", model or make_model(vocab_size=len(tokenizer), **changes)
        model.generation_config.max_new_tokens = 5
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text("# by hand\n")
        return folder

    return save


@pytest.fixture
def workspace(tmp_path) -> Path:
    folder = tmp_path / "workspace"
    folder.mkdir()
    return folder


def read_config(files: list[Path]) -> dict:
    return json.loads(next(path for path in files if path.name == "config.json").read_text())


def test_states_of_a_training_are_not_published():
    assert is_published("model.safetensors") and is_published("model-00001-of-00002.safetensors")
    assert not is_published("raw_weights.safetensors") and not is_published("carried_0.safetensors")


@pytest.mark.parametrize(("pre_norm", "kind"), [(False, "MarianMTModel"), (True, "PegasusForConditionalGeneration")])
def test_the_stock_form_is_the_same_model_without_code(save_model, workspace, batch, pre_norm, kind):
    folder = save_model(pre_norm=pre_norm)
    before, random_state = describe(folder, list_files(folder)), torch.get_rng_state()
    files = make_form(folder, workspace, STOCK)
    assert torch.equal(torch.get_rng_state(), random_state) and describe(folder, list_files(folder)) == before
    assert not [path for path in files if path.suffix == ".py"] and all(is_published(path.name) for path in files)
    assert {"auto_map", "custom_pipelines"}.isdisjoint(read_config(files))
    model, task = load_trained(folder)
    assert task.tokenizer is not None
    loaded = AutoModelForSeq2SeqLM.from_pretrained(workspace, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(workspace, trust_remote_code=False)
    assert type(loaded).__name__ == kind
    inputs = tokenizer(["a b", "d c b a"], padding=True, return_tensors="pt")
    assert inputs["input_ids"].tolist() == task.tokenizer(["a b", "d c b a"], padding=True)["input_ids"]
    assert inputs["input_ids"][1, -1] == tokenizer.eos_token_id
    labels = inputs["input_ids"].flip(-1)
    with torch.no_grad():
        ours, theirs = model(**inputs, labels=labels).logits, loaded(**inputs, labels=labels).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    for beams in (1, 3):
        assert torch.equal(model.generate(**inputs, num_beams=beams), loaded.generate(**inputs, num_beams=beams))
    text = (workspace / "README.md").read_text()
    assert text.startswith("# by hand\n\n## Use") and f"loads this model as `{kind}`, in transformers 4 and 5" in text
    assert "trust_remote_code=True" not in text and 'AutoTokenizer.from_pretrained("me/x")' in text


def test_our_own_form_is_the_folder_itself(save_model, workspace):
    """Also a card that somebody wrote."""
    folder = save_model()
    assert make_form(folder, workspace, HubConfig(model_id="me/x")) == list_files(folder)
    assert {"modeling_seq2seq.py", "translation_pipeline.py"} <= {path.name for path in list_files(folder)}
    assert not [*workspace.iterdir()]


@pytest.mark.parametrize("is_ours", [True, False])
def test_a_pipeline_is_added_for_transformers_5(save_model, workspace, tmp_path, is_ours):
    """Also to a stock model, which has no other form."""
    folder = save_model(None if is_ours else MarianMTModel(MarianConfig(**OTHERS)))
    files = make_form(folder, workspace, WITH_PIPELINE)
    assert [path.name for path in files if path.suffix == ".py"] == ["translation_pipeline.py"]
    assert "auto_map" not in read_config(files) and read_config(files)["custom_pipelines"].keys() == {"translation"}
    repository = tmp_path / "repository"
    repository.mkdir()
    for path in files:
        shutil.copy(path, repository)
    translate = pipeline("translation", model=str(repository), trust_remote_code=True)
    assert translate("a b")[0].keys() == {"translation_text"}
    text = (workspace / "README.md").read_text()
    assert 'pipeline("translation", model="me/x", trust_remote_code=True)' in text
    assert 'AutoModelForSeq2SeqLM.from_pretrained("me/x")' in text


def test_a_stock_model_of_others_stays_as_it_is(save_model, workspace):
    folder = save_model(MarianMTModel(MarianConfig(**OTHERS)))
    names = [path for path in make_form(folder, workspace, STOCK) if path.name != "README.md"]
    assert names == [path for path in list_files(folder) if path.name != "README.md"]


@pytest.mark.parametrize("form", ["own", "transformers"])
def test_a_config_names_no_code_that_is_not_there(save_model, workspace, form):
    """As after fine-tuning a stock model that was published with its pipeline."""
    folder = save_model(MarianMTModel(MarianConfig(**OTHERS)))
    config = folder / "config.json"
    before = json.loads(config.read_text())
    config.write_text(json.dumps(before | {"custom_pipelines": {"translation": {"impl": "translation_pipeline.X"}}}))
    assert read_config(make_form(folder, workspace, HubConfig(model_id="me/x", form=form))) == before


def test_a_wrong_conversion_is_not_published(save_model, workspace, monkeypatch):
    convert = stock.to_stock

    def convert_wrongly(*arguments):
        converted = convert(*arguments)
        with torch.no_grad():
            converted.lm_head.weight[5] *= 1.01
        return converted

    monkeypatch.setattr(stock, "to_stock", convert_wrongly)
    with pytest.raises(
        ConfigError, match=r"model: its form for transformers gives other logits, by .* set hub.form=own"
    ):
        make_form(save_model(), workspace, STOCK)


def test_a_wrong_tokenizer_is_not_published(save_model, workspace, monkeypatch):
    save = stock.save_tokenizer

    def save_without_end(tokenizer, folder):
        save(tokenizer, folder)
        path = folder / "tokenizer.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": None}))

    monkeypatch.setattr(stock, "save_tokenizer", save_without_end)
    with pytest.raises(ConfigError, match=r"model: its form for transformers has another tokenizer; .* hub.form=own"):
        make_form(save_model(), workspace, STOCK)


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (
            Seq2SeqTransformerConfig(tie_word_embeddings=False),
            STOCK,
            r"hub.form: .* model.tie_word_embeddings: .* hub.form=",
        ),
        (
            TransformerClassifierConfig(),
            STOCK,
            "hub.form: no class of transformers computes what a .*; set hub.form=own",
        ),
        (LSTMConfig(), STOCK, "hub.form: no class of transformers computes"),
        (TransformerForecasterConfig(), STOCK, "hub.form: no class of transformers computes"),
        (
            TransformerClassifierConfig(),
            WITH_PIPELINE,
            "hub.with_pipeline: there is no pipeline for a .*; leave it out",
        ),
    ],
)
def test_a_form_that_a_model_cannot_have_is_refused(config, settings, message):
    with pytest.raises(ConfigError, match=message):
        check_form(settings, config)
    check_form(HubConfig(), config)


def test_only_what_is_of_a_model_is_replaced():
    """In a repository; what its owner put there stays."""
    for name in ("model.safetensors", "model-00001-of-00002.safetensors", "modeling_seq2seq.py", "forecasts.png"):
        assert is_replaced(name), name
    for name in (
        "LICENSE",
        "README.md",
        "run.yaml",
        ".gitattributes",
        "app.py",
        "adapter_model.safetensors",
        "a.model",
    ):
        assert not is_replaced(name), name
    assert not is_replaced("onnx/model.safetensors") and not is_replaced("original/config.json")


def test_exports_are_shown_in_the_card_and_stay_at_home(save_model, workspace):
    """Also in a card that somebody wrote, which stays as it is otherwise."""
    folder = save_model()
    (folder / "exports" / "ctranslate2").mkdir(parents=True)
    report = SEARCHED | {"weights": describe(folder, [folder / "model.safetensors"])}
    (folder / "exports" / "ctranslate2" / "equivalence.json").write_text(json.dumps(report))
    files = make_form(folder, workspace, HubConfig(model_id="me/x"))
    assert workspace / "README.md" in files and not [path for path in files if "exports" in path.parts]
    text = (workspace / "README.md").read_text()
    assert text.startswith("# by hand\n\n## Exports\n") and "| ctranslate2 |" in text and "## Use" not in text
    assert (folder / "README.md").read_text() == "# by hand\n"


def test_a_model_from_outside_is_published_as_it_is(save_model, workspace):
    """Its class is registered where it was trained, which may not be here."""
    folder = save_model()
    (folder / "config.json").write_text(json.dumps({"model_type": "of_somebody", "architectures": ["OfSomebody"]}))
    assert make_form(folder, workspace, HubConfig(model_id="me/x")) == list_files(folder)
    with pytest.raises(ConfigError, match=r"hub.form: .* holds a 'of_somebody' model, which is known neither here nor"):
        make_form(folder, workspace, STOCK)


def test_a_card_that_is_not_utf8_is_named(save_model, workspace):
    folder = save_model()
    (folder / "README.md").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"model/README.md is invalid UTF-8; save it as UTF-8"):
        make_form(folder, workspace, STOCK)
