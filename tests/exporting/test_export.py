"""The story of an export: what is left when it holds up, what when it does not, and what is refused before."""

import errno
import json

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from pipeline.errors import ConfigError, RunError
from pipeline.exporting import equivalence, stock
from pipeline.exporting import export as exporting
from pipeline.exporting.export import EXPORTS, ExportSpec, export
from pipeline.inference.engines import base
from pipeline.manifest import damage, sha256
from pipeline.models.configuration_classifier import TransformerClassifierConfig
from pipeline.models.modeling_classifier import TransformerForSequenceClassification
from pipeline.tasks.trained_model import load_trained
from tests.families import make_model as make_other_model


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(equivalence, "RESAMPLES", 50)


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_what_is_left_of_an_export(command, finished_folder):
    done = command("export", finished_folder, "--to", "transformers", "--num-rows", 4)
    target = finished_folder / "exports" / "transformers"
    assert done.returncode == 0 and done.stdout.strip() == str(target), done.stderr
    proof = json.loads((target / "equivalence.json").read_text())
    assert proof["weights"]["model.safetensors"]["sha256"] == sha256(finished_folder / "model.safetensors")
    assert proof["bytes"]["export"] == (target / "model.safetensors").stat().st_size
    assert (proof["export"], proof["quantization"], proof["dtype"]) == ("transformers", None, "float32")
    assert proof["rows"]["compared"] == 4 and proof["searches"].keys() == {"greedy", "beam_4"}
    assert proof["versions"]["transformers"] and "4 of 4 answers are equal" in proof["summary"]
    assert damage(target) is None and files_below(finished_folder / "exports")[0] == "transformers"
    model = AutoModelForSeq2SeqLM.from_pretrained(target)
    assert model.config.max_position_embeddings == 512
    assert command("export", finished_folder, "--to", "transformers", "--num-rows", "all").returncode == 0
    assert json.loads((target / "equivalence.json").read_text())["rows"]["compared"] == 8  # replaced
    assert export(finished_folder / "checkpoint-2", "transformers", finished_folder / "out" / "here").is_dir()
    assert damage(finished_folder) is None


def break_weights(write):
    def write_broken(model, task, folder, positions):
        write(model, task, folder, positions)
        loaded = AutoModelForSeq2SeqLM.from_pretrained(folder)
        with torch.no_grad():
            loaded.final_logits_bias[0, 4:] = torch.linspace(0, 50, loaded.config.vocab_size - 4)
        loaded.save_pretrained(folder)

    return write_broken


def raise_after(write, error):
    def write_and_raise(*arguments):
        write(*arguments)
        raise error

    return write_and_raise


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (break_weights, RunError, r"not written, as the export is not equivalent to the model: greedy: .* became"),
        (lambda write: raise_after(write, KeyboardInterrupt("by hand")), KeyboardInterrupt, "by hand"),
        (
            lambda write: raise_after(write, OSError(errno.ENOSPC, "No space left on device")),
            RunError,
            r"exports/transformers: .*No space left on device; make room and run the same command again",
        ),
        (lambda write: raise_after(write, ZeroDivisionError("a bug")), ZeroDivisionError, "a bug"),
    ],
    ids=["wrong", "interrupted", "disk full", "bug"],
)
def test_nothing_is_left_of_an_export_that_fails(monkeypatch, finished_folder, change, error, message):
    before, write = files_below(finished_folder), stock.write
    for is_there in (False, True):  # an earlier export
        monkeypatch.setattr(stock, "write", change(write))
        with pytest.raises(error, match=message):
            export(finished_folder, "transformers")
        assert files_below(finished_folder) == before
        monkeypatch.setattr(stock, "write", write)
        if not is_there:
            target = export(finished_folder, "transformers")
            before = files_below(finished_folder)
    assert damage(target) is None


def test_only_an_earlier_export_is_replaced(finished_folder):
    target = export(finished_folder, "transformers", num_rows=2)
    proof = (target / "equivalence.json").read_bytes()
    (target / "config.json").unlink()  # a damaged one may go
    export(finished_folder, "transformers", num_rows=2)
    assert damage(target) is None
    with pytest.raises(ConfigError, match="holds an export to transformers; move it away, or name another folder"):
        export(finished_folder, "onnx", target)
    inner = export(finished_folder, "transformers", target / "inner", num_rows=2)
    with pytest.raises(ConfigError, match=r"something else than an earlier export: inner/config\.json; move that away"):
        export(finished_folder, "transformers", num_rows=2)
    assert damage(inner) is None
    whole = finished_folder / "checkpoint-2"  # which has a manifest of its own
    (whole / "equivalence.json").write_bytes(proof)
    with pytest.raises(ConfigError, match="something else than an earlier export"):
        export(finished_folder, "transformers", whole)
    assert (whole / "optimizer.pt").is_file()


def test_a_lower_precision_has_other_bounds(monkeypatch, finished_folder, make_model):
    """A wrong engine of another runtime."""
    spec = EXPORTS["transformers"]
    written = []

    def write(request):
        written.append(request.quantization)
        spec.write(request)

    monkeypatch.setitem(EXPORTS, "other", ExportSpec(write, spec.load, spec.models, ("int8",)))
    target = export(finished_folder, "other", quantization="int8")
    proof = json.loads((target / "equivalence.json").read_text())
    assert written == ["int8"] and proof["quantization"] == "int8"
    assert proof["bounds"]["near_tie"] is None and proof["bounds"]["score"] == -0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--to", "onxx"), "--to: 'onxx' is unknown; did you mean onnx?"),
        (("--to", "transformers", "--quantization", "int8"), "--quantization: transformers has none, only ctranslate2"),
        (("--to", "ctranslate2", "--quantization", "int4"), "--quantization: 'int4' is unknown"),
        (("--to", "transformers", "--output", "{}"), "holds something else than an earlier export: "),
        (("--to", "transformers", "--output", "."), "holds something else than an earlier export"),
        (("--to", "transformers", "--output", "{}/config.json"), "is a link or a file; name a folder"),
        (("--to", "transformers", "--rows", "{}/none.jsonl"), "none.jsonl: no such file"),
    ],
)
def test_what_cannot_be_done_is_said_first(command, finished_run, options, message):
    done = command("export", finished_run, *(option.format(finished_run) for option in options))
    assert done.returncode == 2 and message in done.stderr
    assert not (finished_run / "exports").exists()


def test_a_missing_extra_is_named(monkeypatch, finished_run):
    monkeypatch.setattr(base, "find_spec", lambda library: None if library == "onnxscript" else library)
    with pytest.raises(ConfigError, match=r"--to onnx needs onnxscript: pip install 'teacher-forcing\[export\]'"):
        export(finished_run, "onnx")


def test_what_is_no_trained_model(finished_folder, tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        export(tmp_path / "none", "transformers")
    weights = finished_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=r"damaged: model\.safetensors has"):
        export(finished_folder, "transformers")


def test_models_without_the_form_are_refused(monkeypatch, finished_folder):
    _, task = load_trained(finished_folder)
    sizes = {"d_model": 16, "encoder_layers": 1, "attention_heads": 2, "ffn_dim": 16, "vocab_size": 20}
    classifier = TransformerForSequenceClassification(TransformerClassifierConfig(**sizes))
    other = make_other_model("marian", 40, pad_token_id=0, decoder_start_token_id=0)
    for model, name, message in (
        (classifier, "transformers", "no such form of a TransformerForSequenceClassification; choose from onnx"),
        (other, "transformers", "is a MarianMTModel of transformers already"),
    ):
        monkeypatch.setattr(exporting, "load_trained", lambda checkpoint, model=model: (model, task))
        with pytest.raises(ConfigError, match=message):
            export(finished_folder, name)


def test_a_model_that_has_no_stock_form_is_sent_elsewhere(monkeypatch, finished_folder, make_model):
    _, task = load_trained(finished_folder)
    monkeypatch.setattr(exporting, "load_trained", lambda checkpoint: (make_model(tie_word_embeddings=False), task))
    with pytest.raises(ConfigError, match=r"--to transformers: model\.tie_word_embeddings: .*; try --to onnx"):
        export(finished_folder, "transformers")


def test_a_config_of_another_task_is_refused(finished_folder):
    (finished_folder / "manifest.json").unlink()  # which would find the change
    path = finished_folder / "run.yaml"
    text = path.read_text().replace("task: sequence_to_sequence", "task: language_modeling")
    path.write_text(text)
    with pytest.raises(ConfigError, match="is not a model for that"):
        export(finished_folder, "transformers")
    path.unlink()
    for checkpoint in finished_folder.glob("checkpoint-*"):
        (checkpoint / "run.yaml").unlink()
    with pytest.raises(ConfigError, match=r"there is no run\.yaml"):
        export(finished_folder, "transformers")
