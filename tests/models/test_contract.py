"""What tools of the ecosystem do with a model, done with the encoder-decoder: the results are the plain ones."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import prune
from transformers import AutoModelForSeq2SeqLM, Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments

from pipeline.models.linear_cross_entropy import cross_entropy

TIED = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0}
ON_DISK = {"encoder": "cpu", "decoder.embed_tokens": "cpu", "decoder.layers": "disk", "decoder.final_norm": "cpu"}
ON_DISK |= {"lm_head": "cpu"}
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
    for device_map, max_memory in (("auto", {"cpu": size // 2}), ({"": "disk"}, None), (ON_DISK, None)):
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


@pytest.mark.parametrize("name", ["encoder.embed_tokens", "decoder.embed_tokens", "lm_head"])
def test_a_weight_that_is_no_longer_tied_is_saved(make_model, batch, tmp_path, name):
    """As after an adapter was merged into one of the modules."""
    model = make_model()
    expected = copy.deepcopy(model.get_submodule(name))
    nn.init.normal_(expected.weight)
    model.set_submodule(name, expected)
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[keys] for keys in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits)


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


def test_exported_with_any_batch_and_lengths(make_model):
    """As one program, the batch and both lengths left open; again and again with others."""
    model = make_model(encoder_layers=1, decoder_layers=1)
    batch, source, target = (torch.export.Dim(name, min=1, max=64) for name in ("batch", "source", "target"))

    def inputs(*sizes: int) -> dict[str, torch.Tensor]:
        rows, source, target = sizes
        ids = torch.randint(3, 40, (rows, source))
        mask = torch.ones_like(ids)
        mask[0, source // 2 + 1 :] = 0
        return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": torch.randint(3, 40, (rows, target))}

    shapes: dict = {"input_ids": {0: batch, 1: source}, "attention_mask": {0: batch, 1: source}}
    shapes |= {"decoder_input_ids": {0: batch, 1: target}, "use_cache": None}
    program = torch.export.export(model, (), inputs(3, 7, 5) | {"use_cache": False}, dynamic_shapes=shapes).module()
    for sizes in ((1, 11, 1), (5, 3, 9)):
        given = inputs(*sizes)
        torch.testing.assert_close(program(**given, use_cache=False).logits, model(**given).logits)


@pytest.mark.slow
def test_compiled_training_step_is_one_graph(make_model, batch):
    model = make_model(encoder_layers=1, decoder_layers=1, **NO_DROPOUT).train()
    loss = model(**batch).loss
    loss.backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled_loss = compiled(**batch).loss
    compiled_loss.backward()
    torch.testing.assert_close(compiled_loss, loss)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize("targets", ["all-linear", ["lm_head"]], ids=["all-linear", "lm_head"])
def test_adapters(make_model, batch, targets):
    """Trained and evaluated the same, merged and not."""
    peft = pytest.importorskip("peft")
    base = make_model(tie_word_embeddings=False, **NO_DROPOUT)
    settings = peft.LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=targets, r=2, init_lora_weights=False)
    model = peft.get_peft_model(base, settings).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(3):
        loss = model(**batch).loss
        torch.testing.assert_close(model.eval()(**batch).loss, loss)
        model.train().zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > losses[-1]
    logits = model.eval()(**batch).logits
    torch.testing.assert_close(model.merge_and_unload()(**batch).logits, logits, atol=1e-5, rtol=1e-4)


class Pairs(torch.utils.data.Dataset):
    def __init__(self, batch):
        self.rows = [{name: batch[name][index] for name in batch} for index in range(2)]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", [Trainer, Seq2SeqTrainer])
def test_stock_trainers(make_model, batch, tmp_path, kind, smoothing):
    model = make_model(**NO_DROPOUT)
    with torch.no_grad():
        before = model(**batch)
    settings = {"output_dir": tmp_path, "max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": True}
    settings |= {"report_to": "none", "disable_tqdm": True, "label_smoothing_factor": smoothing, "learning_rate": 0.01}
    if kind is Seq2SeqTrainer:
        arguments = Seq2SeqTrainingArguments(**settings, predict_with_generate=True, generation_max_length=6)
    else:
        arguments = TrainingArguments(**settings)
    # Where the trainer smooths the labels, it gives the model none, but what DataCollatorForSeq2Seq makes of them.
    pairs = Pairs(batch | {"decoder_input_ids": model.prepare_decoder_input_ids_from_labels(batch["labels"])})
    trainer = kind(model=model, args=arguments, train_dataset=pairs, eval_dataset=pairs)
    first = trainer.evaluate()["eval_loss"]
    if not smoothing:
        assert first == pytest.approx(before.loss.item(), rel=1e-5)
    assert trainer.train().training_loss > 0
    assert trainer.evaluate()["eval_loss"] < first
    predictions = trainer.predict(pairs).predictions
    if kind is Seq2SeqTrainer:
        assert len(predictions) == 2 and predictions.ndim == 2  # of tokens
    else:
        assert predictions[0].shape == (2, 4, 40)


def test_plain_tuples(make_model, batch):
    model = make_model()
    expected = model(**batch)
    assert torch.equal(model(**batch, return_dict=False)[1], expected.logits)
    model.config.return_dict = False
    assert torch.equal(model(**batch)[1], expected.logits)
    assert torch.equal(model(**batch, return_dict=True).logits, expected.logits)


def test_a_head_of_another_dtype_is_used_the_same_in_training(make_model, batch):
    """As `nn.Linear` does: not but under autocast."""
    model = make_model(tie_word_embeddings=False, **NO_DROPOUT)
    model.lm_head.to(torch.bfloat16)
    for training in (True, False):
        with pytest.raises(RuntimeError, match="dtype"):
            model.train(training)(**batch)
    with torch.autocast("cpu", torch.bfloat16):
        losses = [model.train(training)(**batch).loss for training in (True, False)]
    torch.testing.assert_close(*losses, atol=1e-2, rtol=1e-2)


def test_logits_to_keep(make_model, batch):
    model = make_model()
    whole = model(**batch)
    for places, expected in ((1, whole.logits[:, -1:]), (torch.tensor([0, 2]), whole.logits[:, [0, 2]])):
        kept = model(**batch, logits_to_keep=places)
        assert torch.equal(kept.logits, expected) and kept.loss == whole.loss
        decoder_input_ids = model.prepare_decoder_input_ids_from_labels(batch["labels"])
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        kept = model(**inputs, decoder_input_ids=decoder_input_ids, logits_to_keep=places)
        torch.testing.assert_close(kept.logits, expected)


def test_second_derivatives_are_right_or_refused(make_model, batch):
    model = make_model(**NO_DROPOUT).train()
    weights = [model.encoder.layers[0].feed_forward.fc1.weight]
    with pytest.raises(RuntimeError, match="call the model without labels"):
        torch.autograd.grad(model(**batch).loss, weights, create_graph=True)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    decoder_input_ids = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    total, _ = cross_entropy(model(**inputs, decoder_input_ids=decoder_input_ids).logits, batch["labels"])
    (gradient,) = torch.autograd.grad(total, weights, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), weights)
    assert second.abs().max() > 0
