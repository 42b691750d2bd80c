"""What tools of the ecosystem do with a model of transformers, done with the encoder-decoder: each result is the plain one."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import prune
from transformers import AutoModelForSeq2SeqLM

TIED = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0}
LAYERS = {
    "encoder": "cpu",
    "decoder.embed_tokens": "cpu",
    "decoder.layers": "disk",
    "decoder.final_norm": "cpu",
    "lm_head": "cpu",
    "decoder.dropout": "cpu",
}
SHARED = "encoder.embed_tokens.weight"


class Int8Linear(nn.Module):
    """As a quantised layer: its weight is not what it multiplies by."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.scale = linear.weight.detach().abs().amax() / 127
        self.weight = nn.Parameter((linear.weight / self.scale).round().to(torch.int8), requires_grad=False)

    def forward(self, states):
        return nn.functional.linear(states, self.weight.float() * self.scale)


class Wrapped(nn.Module):
    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.linear = linear
        self.weight = linear.weight

    def forward(self, states):
        return 2 * self.linear(states)


def replace(make):
    def change(model):
        model.lm_head = make(model.lm_head)

    return change


def forward_of_its_own(model):
    forward = model.lm_head.forward
    model.lm_head.forward = lambda states: 2 * forward(states)


def low_rank(model):
    peft = pytest.importorskip("peft")
    adapted = peft.inject_adapter_in_model(
        peft.LoraConfig(target_modules=["lm_head"], init_lora_weights=False, lora_dropout=0.0), model
    )
    assert adapted is model


HEADS = {
    "hook": lambda model: model.lm_head.register_forward_hook(lambda module, inputs, output: 2 * output),
    "hook before": lambda model: model.lm_head.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],)),
    "forward of its own": forward_of_its_own,
    "wrapped": replace(Wrapped),
    "int8": replace(Int8Linear),
    "bias": replace(lambda linear: nn.Linear(*reversed(linear.weight.shape))),
    "parametrised": lambda model: nn.utils.parametrizations.spectral_norm(model.lm_head),
    "pruned": lambda model: prune.random_unstructured(model.lm_head, "weight", amount=0.5),
    "LoRA": low_rank,
}


@pytest.mark.parametrize("change", HEADS.values(), ids=HEADS)
def test_the_loss_of_training_is_of_what_the_head_computes(make_model, batch, change):
    model = make_model(tie_word_embeddings=False, **NO_DROPOUT)
    plain = model(**batch).loss
    change(model)
    expected = model(**batch)
    assert abs(expected.loss - plain) > 1e-4
    trained = model.train()(**batch)
    torch.testing.assert_close(trained.loss, expected.loss)
    assert torch.equal(trained.correct, expected.logits.argmax(-1) == batch["labels"])
    trained.loss.backward()


@TIED
def test_offloaded(make_model, batch, tmp_path, tied):
    """Some layers on the disk, as `device_map` leaves them where memory ends."""
    model = make_model(tie_word_embeddings=tied, **NO_DROPOUT)
    model.save_pretrained(tmp_path / "model")
    expected = model(**batch)
    generated = model.generate(batch["input_ids"], max_new_tokens=5, num_beams=3)
    size = sum(parameter.nbytes for parameter in model.parameters())
    for device_map, max_memory in (("auto", {"cpu": size // 2}), ({"": "disk"}, None), (LAYERS, None)):
        offloaded = AutoModelForSeq2SeqLM.from_pretrained(
            tmp_path / "model", device_map=device_map, max_memory=max_memory, offload_folder=tmp_path / "offloaded"
        )
        assert "disk" in offloaded.hf_device_map.values() and "meta" in {p.device.type for p in offloaded.parameters()}
        torch.testing.assert_close(offloaded(**batch).logits, expected.logits)
        torch.testing.assert_close(offloaded.train()(**batch).loss, expected.loss)
        torch.testing.assert_close(
            offloaded.eval().generate(batch["input_ids"], max_new_tokens=5, num_beams=3), generated
        )


@pytest.mark.parametrize("name", [SHARED, "decoder.embed_tokens.weight", "lm_head.weight"])
def test_a_tied_weight_is_found_under_each_of_its_names(make_model, batch, tmp_path, name):
    model = make_model()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights[name] = weights.pop(SHARED)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    loaded, report = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[keys] for keys in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.lm_head.weight is loaded.encoder.embed_tokens.weight is loaded.decoder.embed_tokens.weight
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


@TIED
@pytest.mark.parametrize("size", [50, 30])
def test_resized(make_model, batch, tmp_path, tied, size):
    model = make_model(tie_word_embeddings=tied)
    logits = model(**batch).logits
    model.resize_token_embeddings(size, mean_resizing=False)
    model.save_pretrained(tmp_path)
    for resized in (model, AutoModelForSeq2SeqLM.from_pretrained(tmp_path)):
        assert resized.config.vocab_size == resized.lm_head.out_features == size
        assert (resized.lm_head.weight is resized.encoder.embed_tokens.weight) == tied
        for embedding in (resized.get_input_embeddings(), resized.decoder.embed_tokens):
            assert embedding.weight.shape == (size, 16) and embedding.num_embeddings == size
        torch.testing.assert_close(resized(**batch).logits[..., :30], logits[..., :30])
        torch.testing.assert_close(resized.train()(**batch).loss.isfinite(), torch.tensor(True))
        resized.eval()
