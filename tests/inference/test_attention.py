"""The numbers of a trace, and the command that makes one."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy

from pipeline.errors import ConfigError, RunError
from pipeline.inference.attention import readable_tokens, trace
from pipeline.models.configuration_classifier import TransformerClassifierConfig
from pipeline.models.modeling_classifier import TransformerForSequenceClassification
from pipeline.models.modeling_seq2seq import shift_right
from pipeline.tasks.sequence_to_sequence import SequenceToSequence
from tests.conftest import TINY
from tokenizer.training import train

SOURCE, TARGET = "a b <script> d", "d c $b"


@pytest.fixture
def tokenizer():
    return train(["a b c d <script> $b"] * 2, "word", 12, max_length=16)


@pytest.fixture
def model(make_model, tokenizer):
    model = make_model(vocab_size=len(tokenizer), decoder_layers=1)
    model.generation_config.max_new_tokens = 8  # as every run gives one
    return model


@pytest.fixture
def traced(model, tokenizer):
    return trace(model, SequenceToSequence(tokenizer), SOURCE, TARGET)


def test_the_steps_add_up_to_the_parallel_pass(traced, model, tokenizer):
    labels = torch.tensor([tokenizer(TARGET)["input_ids"]])
    logits = model(torch.tensor([tokenizer(SOURCE)["input_ids"]]), decoder_input_ids=shift_right(labels, 1, 0)).logits
    losses = [step.loss for step in traced.steps]
    assert losses == pytest.approx(cross_entropy(logits[0], labels[0], reduction="none").tolist(), abs=1e-5)
    assert traced.summed_loss == pytest.approx(traced.parallel_summed_loss, abs=1e-5)
    assert traced.parallel_summed_loss == pytest.approx(sum(losses), abs=1e-5)


def test_a_step_tells_the_most_probable_tokens_and_the_right_one(traced, model, tokenizer):
    labels = torch.tensor([tokenizer(TARGET)["input_ids"]])
    logits = model(torch.tensor([tokenizer(SOURCE)["input_ids"]]), decoder_input_ids=shift_right(labels, 1, 0)).logits
    for step, distribution, label in zip(traced.steps, logits[0].softmax(-1), traced.target_ids, strict=True):
        ids, tokens, probabilities = zip(*step.candidates, strict=True)
        assert list(ids) == distribution.argsort(descending=True)[:5].tolist()
        assert list(tokens) == tokenizer.convert_ids_to_tokens(list(ids))
        assert list(probabilities) == pytest.approx(distribution[list(ids)].tolist(), abs=1e-5)
        assert step.token_id == label and step.probability == pytest.approx(distribution[label].item(), abs=1e-5)
        assert step.rank == distribution.argsort(descending=True).tolist().index(label) + 1
        assert step.loss == pytest.approx(-math.log(step.probability), abs=1e-5)


def test_a_model_that_sees_the_future_is_found_out(model, tokenizer):
    def look_ahead(module, arguments, output):
        output.last_hidden_state[:, :-1] += output.last_hidden_state[:, 1:].clone()

    model.decoder.register_forward_hook(look_ahead)
    with pytest.raises(RunError, match=r"losses of the 4 steps add up to .* that of the parallel pass is"):
        trace(model, SequenceToSequence(tokenizer), SOURCE, TARGET)


def test_attention_is_the_softmax_of_the_scores(traced):
    kinds = (traced.encoder_attentions, traced.decoder_attentions, traced.cross_attentions)
    assert [len(layers) for layers in kinds] == [2, 1, 1]
    for layers, rows, columns in zip(kinds, (5, 4, 4), (5, 4, 5), strict=True):
        future = torch.ones(rows, columns, dtype=torch.bool).triu(1)
        for layer in layers:
            assert layer.weights.shape == (4, rows, columns) and layer.values.shape == (4, columns, 4)
            torch.testing.assert_close(layer.weights.sum(-1), torch.ones(4, rows))
            scores = torch.einsum("hte,hke->htk", layer.queries, layer.keys) / math.sqrt(16 / 4)
            torch.testing.assert_close(layer.scores, scores)
            if layers is traced.decoder_attentions:
                assert (layer.weights[:, future] == 0).all()
                scores = scores.masked_fill(future, -torch.inf)
            torch.testing.assert_close(layer.weights, scores.softmax(-1))


def test_what_the_first_layers_read(traced, model):
    for side, embedding in ((traced.source, model.encoder.embed_tokens), (traced.decoder_input, model.lm_head)):
        for position, token_id in enumerate(side.ids):
            vector = embedding.weight[token_id] * 4  # the root of d_model
            angles = [position / 10000 ** (2 * (i // 2) / 16) for i in range(16)]
            wave = torch.tensor([math.cos(x) if i % 2 else math.sin(x) for i, x in enumerate(angles)])
            torch.testing.assert_close(side.vectors[position], vector.detach())
            torch.testing.assert_close(side.positions[position], wave)
            torch.testing.assert_close(side.inputs[position], vector.detach() + wave)
    assert traced.source.tokens == ["a", "b", "<script>", "d", "</s>"]
    assert traced.decoder_input.tokens == ["<s>", "d", "c", "$b"] and traced.target_tokens == ["d", "c", "$b", "</s>"]


def test_greedy_is_greedy_whatever_the_checkpoint_prefers(model, tokenizer):
    ids = torch.tensor([tokenizer(SOURCE)["input_ids"]])
    plain = model.generate(ids, do_sample=False, max_new_tokens=18)[0, 1:].tolist()
    model.generation_config.update(num_beams=4, do_sample=True, max_length=3, num_return_sequences=2)
    traced = trace(model, SequenceToSequence(tokenizer), SOURCE, TARGET)
    assert traced.generated_ids == plain and model.generation_config.num_beams == 4
    assert traced.generated_text == tokenizer.decode(plain, skip_special_tokens=True)


def test_tokens_are_told_as_people_read_them():
    tokenizer = train(["né à l'été " * 3] * 3, "bpe", 300)
    ids = tokenizer("né à")["input_ids"]
    assert "".join(readable_tokens(tokenizer, ids)) == "né␣à</s>"
    assert readable_tokens(tokenizer, tokenizer("\u4e16")["input_ids"])[0] == "ä"  # one byte of three is not text
    assert readable_tokens(tokenizer, [300]) == ["#300"]  # of a model with a larger vocabulary


@pytest.mark.parametrize("source, target, said", [("a", " ", "target is empty"), ("", "a", "source is empty")])
def test_an_empty_text_is_named(model, tokenizer, source, target, said):
    with pytest.raises(ConfigError, match=said):
        trace(model, SequenceToSequence(tokenizer), source, target)


def test_the_command(command, model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    done = command("trace", tmp_path / "model", "a b", "b a", "--output", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    assert "sum of 3 step losses" in done.stdout
    assert "</html>" in (tmp_path / "page.html").read_text() and (tmp_path / "page.png").stat().st_size > 0


def test_the_command_names_what_is_wrong(command, model, tokenizer, tmp_path):
    config = TransformerClassifierConfig(vocab_size=len(tokenizer), **TINY)
    TransformerForSequenceClassification(config).save_pretrained(tmp_path / "classifier")
    model.save_pretrained(tmp_path / "model")
    for name in ("classifier", "model"):
        tokenizer.save_pretrained(tmp_path / name)
    for arguments, said in (
        (("classifier", "a", "b"), "holds a TransformerForSequenceClassification"),
        (("nothing", "a", "b"), "no complete checkpoint of a trained model"),
        (("model", "a", ""), "target is empty"),
        (("model", "a \udcff", "b"), "source: invalid UTF-8"),
        (("model", "a", "b", "--output", "x.png"), "--output x.png"),
        (("model", "a", "b", "--output", tmp_path / "no" / "x.html"), "No such file or directory"),
    ):
        done = command("trace", tmp_path / arguments[0], *arguments[1:])
        assert done.returncode == 2 and done.stderr.startswith("error: ") and said in done.stderr


def test_tokens_of_a_tokenizer_without_a_backend():
    """Such as Marian's, which SentencePiece models and a dict make up."""
    names = {5: "▁a", 6: "\n"}
    tokenizer = SimpleNamespace(is_fast=False, convert_ids_to_tokens=lambda ids: [names.get(number) for number in ids])
    assert readable_tokens(tokenizer, [5, 6, 7]) == ["▁a", "⏎", "#7"]
