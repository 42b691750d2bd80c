import copy
from functools import partial

import pytest
import torch
from transformers import AutoModelForSequenceClassification
from transformers.loss.loss_utils import ForSequenceClassificationLoss

from pipeline.models.configuration_classifier import TransformerClassifierConfig
from pipeline.models.modeling_classifier import TransformerForSequenceClassification
from tests.conftest import TINY


@pytest.fixture
def make_classifier():
    def make(**changes):
        torch.manual_seed(0)
        config = TransformerClassifierConfig(**{"vocab_size": 40, "num_labels": 3, **TINY, **changes})
        return TransformerForSequenceClassification(config).eval()

    return make


@pytest.mark.parametrize("kernels", [[], [2, 3, 5]])
@pytest.mark.parametrize("pooling", ["mean", "max", "first"])
def test_padding_changes_nothing(make_classifier, batch, pooling, kernels):
    model = make_classifier(pooling=pooling, conv_kernels=kernels)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    alone = model(input_ids=batch["input_ids"][1:, :3]).logits
    torch.testing.assert_close(logits[1:], alone)
    torch.testing.assert_close(model(input_ids=batch["input_ids"]).logits, logits)  # the mask is made from the padding


def test_pooling(make_classifier, batch):
    """The head sees the mean or the maximum of the real positions, or the first one."""
    for pooling, pool in (("mean", torch.mean), ("max", torch.amax), ("first", lambda states, _: states[0])):
        model = make_classifier(pooling=pooling)
        states = model.encoder(batch["input_ids"], batch["attention_mask"]).last_hidden_state
        pooled = torch.stack([pool(states[0], 0), pool(states[1, :3], 0)])
        torch.testing.assert_close(model(batch["input_ids"], batch["attention_mask"]).logits, model.classifier(pooled))


def test_convolutions_are_added_to_the_embedding(make_classifier):
    """By the formula: at each place, relu of the weighted sum over its neighbours and itself."""
    encoder = make_classifier(conv_kernels=[3]).encoder
    plain = make_classifier().encoder
    plain.load_state_dict(encoder.state_dict(), strict=False)
    ids = torch.tensor([[5, 6, 7]])
    vectors, convolved = plain._embed(ids, None, None)[0], encoder._convolve(ids, None)[0]
    left, here, right = encoder.convolutions[0].weight.unbind(-1)  # (D, D) each
    middle = (left @ vectors[0] + here @ vectors[1] + right @ vectors[2] + encoder.convolutions[0].bias).relu()
    torch.testing.assert_close(convolved[1], vectors[1] + middle)


def test_loss_is_cross_entropy(make_classifier, batch):
    model = make_classifier(label_smoothing=0.1, dropout=0.0, classifier_dropout=0.0)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")} | {"labels": torch.tensor([2, 0])}
    outputs = model(**inputs)
    torch.testing.assert_close(outputs.loss, torch.nn.functional.cross_entropy(outputs.logits, inputs["labels"]))
    torch.testing.assert_close(model(**inputs, num_items_in_batch=8).loss, outputs.loss * 2 / 8)
    smoothed = torch.nn.functional.cross_entropy(outputs.logits, inputs["labels"], label_smoothing=0.1)
    torch.testing.assert_close(model.train()(**inputs).loss, smoothed)


def test_saved_and_loaded(make_classifier, batch, tmp_path):
    names = {0: "bad", 1: "so-so", 2: "good"}
    model = make_classifier(id2label=names, label2id={name: number for number, name in names.items()})
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(loaded) is type(model) and loaded.config.id2label == names
    assert torch.equal(loaded(batch["input_ids"]).logits, model(batch["input_ids"]).logits)


# What it predicts: one class, any number of classes, or numbers


PROBLEMS = {
    "one number": ({"num_labels": 1}, torch.tensor([0.5, -2.0])),
    "one number in a column": ({"num_labels": 1}, torch.tensor([[0.5], [-2.0]])),
    "whole numbers": ({"num_labels": 1}, torch.tensor([3, 4])),
    "numbers": ({"problem_type": "regression"}, torch.tensor([[0.5, 1.0, 2.0], [-2.0, 0.0, 1.0]])),
    "class": ({}, torch.tensor([2, 0])),
    "class, or none": ({}, torch.tensor([2, -100])),
    "classes": ({}, torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])),
    "one class or not": (
        {"num_labels": 1, "problem_type": "multi_label_classification"},
        torch.tensor([[1.0], [0.0]]),
    ),
}


@pytest.mark.parametrize("changes, labels", PROBLEMS.values(), ids=PROBLEMS)
def test_losses_are_those_of_transformers(make_classifier, batch, changes, labels):
    model = make_classifier(**changes)
    outputs = model(batch["input_ids"], batch["attention_mask"], labels)
    config = copy.deepcopy(model.config)
    theirs = labels.float() if model.config.num_labels == 1 else labels
    expected = ForSequenceClassificationLoss(theirs, outputs.logits, config)
    torch.testing.assert_close(outputs.loss, expected)
    assert model.config.problem_type == changes.get(
        "problem_type"
    )  # transformers' own would remember the first batch's
    count = labels.ne(-100).sum()
    torch.testing.assert_close(model(**batch | {"labels": labels}, num_items_in_batch=10).loss, expected * count / 10)


def test_the_problem_is_that_of_each_batch(make_classifier, batch):
    model = make_classifier(label_smoothing=0.1, dropout=0.0, classifier_dropout=0.0).train()
    several = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    logits = model(batch["input_ids"], batch["attention_mask"]).logits
    for labels, loss in (
        (several, torch.nn.functional.binary_cross_entropy_with_logits(logits, several)),  # not smoothed
        (several.bool(), torch.nn.functional.binary_cross_entropy_with_logits(logits, several)),
        (several[:, 0].long(), torch.nn.functional.cross_entropy(logits, several[:, 0].long(), label_smoothing=0.1)),
    ):
        torch.testing.assert_close(model(batch["input_ids"], batch["attention_mask"], labels).loss, loss)


def test_r_drop(make_classifier, batch):
    """By torch's own functions, of the logits that the same random numbers give for the batch and once more for it."""
    inputs, labels = (batch["input_ids"], batch["attention_mask"]), torch.tensor([2, -100])
    model = make_classifier(dropout=0.3, label_smoothing=0.1, r_drop=4.0).train()
    torch.manual_seed(1)
    outputs = model(*inputs, labels)
    torch.manual_seed(1)
    logits = model(*(ids.repeat(2, 1) for ids in inputs)).logits
    entropies = torch.nn.functional.cross_entropy(logits, labels.repeat(2), label_smoothing=0.1)
    first, second = logits[[0, 2]].log_softmax(-1)
    apart = ((first.exp() - second.exp()) * (first - second)).sum() / 2
    assert apart > 1e-4
    torch.testing.assert_close(outputs.divergence, apart)
    torch.testing.assert_close(outputs.loss, entropies + 4.0 / 2 * apart)
    assert torch.equal(outputs.logits, logits[:2])
    with pytest.raises(ValueError, match=r"r_drop=4.0: only for texts that have one class each"):
        model(*inputs, torch.zeros(2, 3))
    assert model.eval()(*inputs, torch.zeros(2, 3)).loss > 0  # where there is one pass only


@pytest.mark.parametrize("changes", [{}, {"static_embeddings": True}, {"label_smoothing": 0.1, "conv_kernels": [3]}])
def test_adversarial_training(make_classifier, batch, changes):
    """By the formula, loss and gradients: the mean of the loss at the vectors v and at v + epsilon g / |g|."""
    ids, mask, labels = batch["input_ids"], batch["attention_mask"], torch.tensor([2, 0])
    plain = make_classifier(dropout=0.0, classifier_dropout=0.0, **changes).train()
    model = make_classifier(dropout=0.0, classifier_dropout=0.0, **changes, adversarial_epsilon=0.5).train()
    outputs = model(ids, mask, labels)
    outputs.loss.backward()

    static_ids = ids if changes.get("static_embeddings") else None
    vectors = plain.get_input_embeddings()(ids)
    clean = plain(static_ids, mask, labels, inputs_embeds=vectors)
    [gradient] = torch.autograd.grad(clean.loss, vectors, retain_graph=True)
    assert (gradient[1, 3:] == 0).all(), "padding is not moved"
    moves = 0.5 * gradient / gradient.pow(2).sum((1, 2), keepdim=True).sqrt()
    moved = plain(static_ids, mask, labels, inputs_embeds=vectors + moves)
    assert moved.loss > clean.loss + 1e-3
    torch.testing.assert_close(outputs.loss, (clean.loss + moved.loss) / 2)
    assert torch.equal(outputs.logits, clean.logits)
    ((clean.loss + moved.loss) / 2).backward()
    for (name, weights), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(weights.grad, expected.grad, msg=name)

    assert torch.equal(model.eval()(ids, mask, labels).loss, plain.eval()(ids, mask, labels).loss)
    with torch.no_grad():
        assert torch.equal(model.train()(ids, mask, labels).loss, plain.train()(ids, mask, labels).loss)


def test_adversarial_training_of_a_compiled_model(make_classifier, batch):
    losses = []
    for wrap in (lambda model: model, partial(torch.compile, backend="aot_eager")):
        model = make_classifier(adversarial_epsilon=0.5, dropout=0.0, classifier_dropout=0.0).train()
        loss = wrap(model)(batch["input_ids"], batch["attention_mask"], torch.tensor([2, 0])).loss
        loss.backward()
        losses += [loss, model.get_input_embeddings().weight.grad]
    torch.testing.assert_close(losses[2:], losses[:2])


def test_no_adversarial_training_in_float16(make_classifier, batch):
    model = make_classifier(adversarial_epsilon=0.5).train()
    inputs = batch["input_ids"], batch["attention_mask"]
    with torch.autocast("cpu", torch.float16):
        with pytest.raises(
            ValueError, match=r"adversarial_epsilon=0.5: not in float16, .*; train in bfloat16 or float32"
        ):
            model(*inputs, torch.tensor([2, 0]))
        assert model(*inputs).logits.isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(*inputs, torch.tensor([2, 0])).loss.isfinite()


def test_adversarial_training_of_what_cannot_be_moved(make_classifier, batch):
    """A text without a label has no direction, embeddings may be frozen, and R-Drop moves both its passes."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    model = make_classifier(dropout=0.3, adversarial_epsilon=0.5, r_drop=1.0).train()
    model.get_input_embeddings().requires_grad_(False)
    outputs = model(ids, mask, torch.tensor([2, -100]))
    assert outputs.loss.isfinite() and outputs.divergence > 0
    vectors = model.get_input_embeddings()(ids)
    assert model(inputs_embeds=vectors, labels=torch.tensor([2, 0])).loss.isfinite()
    for wrong in ({}, {"attention_mask": mask}, {"input_ids": ids, "inputs_embeds": vectors}):
        with pytest.raises(ValueError, match="give token ids or vectors in place of them"):
            model(**wrong, labels=torch.tensor([2, 0]))


def test_labels_of_another_shape(make_classifier, batch):
    for labels in (torch.zeros(2), torch.zeros(2, 2), torch.zeros(3, 2)):
        with pytest.raises(ValueError, match=r"labels has the shape .*; \(2, 3\) is needed for multi_label"):
            make_classifier()(batch["input_ids"], batch["attention_mask"], labels)


# Rows without a token, padding on the left


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("pooling", ["mean", "max", "first"])
def test_a_row_with_only_padding_is_zeros(make_classifier, batch, pooling, kernel):
    model = make_classifier(pooling=pooling, conv_kernels=[3], attn_implementation=kernel)
    mask = batch["attention_mask"].clone()
    mask[1] = 0
    outputs = model(batch["input_ids"], mask, torch.tensor([2, 0]))
    torch.testing.assert_close(outputs.logits[1], model.classifier.bias)
    torch.testing.assert_close(outputs.logits[:1], model(batch["input_ids"][:1], mask[:1]).logits)
    outputs.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_the_first_position_is_the_first_real_one(make_classifier, batch):
    model = make_classifier(pooling="first")
    ids = batch["input_ids"][1:, :3]
    padded, mask = torch.nn.functional.pad(ids, (2, 0)), torch.tensor([[0, 0, 1, 1, 1]])
    states = model.encoder(padded, mask).last_hidden_state
    torch.testing.assert_close(model(padded, mask).logits, model.classifier(states[:, 2]))


# Static embeddings


@pytest.mark.parametrize("size", [50, 30])
def test_both_tables_are_resized(make_classifier, tmp_path, size):
    ids = torch.tensor([[5, 6, 7]])
    model = make_classifier(static_embeddings=True)
    logits = model(ids).logits
    model.resize_token_embeddings(size, mean_resizing=False)
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[keys] for keys in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for resized in (model, loaded):
        assert resized.config.vocab_size == size
        for table in (resized.get_input_embeddings(), resized.get_static_embeddings()):
            assert table.weight.shape == (size, 16) and table.num_embeddings == size
        assert not resized.get_static_embeddings().weight.requires_grad
        torch.testing.assert_close(resized(ids).logits, logits)
    model.resize_token_embeddings(size, pad_to_multiple_of=32)
    assert model.get_static_embeddings().num_embeddings == model.config.vocab_size == (64 if size == 50 else 32)


def test_vectors_do_not_say_the_static_ones(make_classifier):
    with pytest.raises(ValueError, match="inputs_embeds: the model has static embeddings as well"):
        make_classifier(static_embeddings=True)(inputs_embeds=torch.zeros(1, 3, 16))


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_attentions(make_classifier, batch, kernel):
    model = make_classifier(attn_implementation=kernel)
    outputs = model(batch["input_ids"], output_attentions=True)
    length = batch["input_ids"].shape[1]
    assert [weights.shape for weights in outputs.attentions] == [(2, 4, length, length)] * 2
    torch.testing.assert_close(outputs.attentions[0].sum(-1), torch.ones(2, 4, length))
    torch.testing.assert_close(outputs.logits, model(batch["input_ids"]).logits)
