import pytest
import torch
from transformers import AutoModelForSequenceClassification

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
