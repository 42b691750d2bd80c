"""The proof: what is equivalent is told from what is not, whoever computes it."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import sacrebleu
import torch
from datasets import Dataset
from transformers.modeling_outputs import SequenceClassifierOutput

from pipeline.config import SacrebleuConfig
from pipeline.exporting import equivalence
from pipeline.exporting.equivalence import EXACT, REDUCED, compare, compare_bleu, find_other_tokens
from pipeline.exporting.rows import ComparedRows, choose_rows
from pipeline.exporting.stock import to_stock
from pipeline.inference.metrics import bleu
from pipeline.models.configuration_classifier import TransformerClassifierConfig
from pipeline.models.configuration_forecaster import TransformerForecasterConfig
from pipeline.models.configuration_lstm import LSTMConfig
from pipeline.models.modeling_classifier import TransformerForSequenceClassification
from pipeline.models.modeling_forecaster import TransformerForecaster
from pipeline.models.modeling_lstm import LSTMForCausalLM
from pipeline.tasks import language_modeling
from pipeline.tasks.encoding import encode_rows
from pipeline.tasks.forecasting import Forecasting
from pipeline.tasks.language_modeling import LanguageModeling
from pipeline.tasks.text_classification import TextClassification
from pipeline.tasks.trained_model import load_trained
from tests.conftest import TINY


def randomise(model, std):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=std)
    return model.eval()


def stock_of(model):
    stock = to_stock(model)
    stock.generation_config = copy.deepcopy(model.generation_config)
    return stock


@pytest.fixture
def pairs(finished_run, make_config, monkeypatch):
    """A model whose answers differ from row to row, its task, and rows whose targets are its answers."""
    monkeypatch.setattr(equivalence, "RESAMPLES", 50)
    model, task = load_trained(finished_run)
    randomise(model, 1.0)
    rows = choose_rows(task, make_config(), None, None, 512)
    answers = task.predict(model, task.collate(rows.features), model.generation_config)
    assert len(set(answers)) >= 4
    features = [row | {"target": answer} for row, answer in zip(rows.features, answers, strict=True)]
    return model, task, replace(rows, features=features)


def most_frequent_token(task, rows):
    ids = torch.tensor([token for row in rows.features for token in task.tokenizer(row["target"])["input_ids"]])
    return int(ids[ids > 3].mode().values)  # no special one


def test_the_stock_form_is_equivalent(pairs):
    model, task, rows = pairs
    proof = compare(model, stock_of(model), task, rows, EXACT)
    assert proof.problem is None
    assert proof.report["rows"] == {"origin": "reversal (validation)", "compared": 8, "left_out": 0}
    for search in proof.report["searches"].values():
        assert (search["equal"], search["different"], search["differences"]) == (8, 0, [])
        assert search["bleu"]["difference"] == 0 and search["bleu"]["interval"] == [0, 0]
        rates = search["rows_per_second"]
        assert rates["ratio"] == pytest.approx(rates["export"] / rates["model"])
    assert proof.report["searches"]["greedy"]["bleu"]["model"] == pytest.approx(100)
    assert "greedy: 8 of 8 answers are equal" in proof.report["summary"]


def flip_weights(stock, token=None):
    stock.model.decoder.layers[0].fc1.weight.neg_()


def drop_row_of_vocabulary(stock, token):
    """As a converter does that counts one token too few."""
    stock.final_logits_bias[0, token] = -1e9


def scale_norm(stock, token=None):
    stock.model.encoder.layers[0].final_layer_norm.weight.mul_(1.5)


def start_from_other_token(stock, token=None):
    stock.generation_config.decoder_start_token_id = 2


@pytest.mark.parametrize("harm", [flip_weights, drop_row_of_vocabulary, scale_norm, start_from_other_token])
def test_wrong_engines_are_refused(pairs, harm):
    model, task, rows = pairs
    stock = stock_of(model)
    with torch.no_grad():
        harm(stock, most_frequent_token(task, rows))
    for bounds, has_references in ((EXACT, True), (REDUCED, False)):
        proof = compare(model, stock, task, replace(rows, has_references=has_references), bounds)
        assert proof.problem is not None and "BLEU is" in proof.problem
        assert ("answers are equal" in proof.problem) is (bounds is EXACT)


def test_a_difference_is_listed_with_what_the_model_thinks_of_it(pairs):
    model, task, rows = pairs
    stock = stock_of(model)
    with torch.no_grad():
        flip_weights(stock)
    search = compare(model, stock, task, rows, EXACT).report["searches"]["greedy"]
    worst = search["differences"][0]
    row = next(row for row in rows.features if row["sample_id"] == worst["row"])
    assert worst["model"] == row["target"] != worst["export"]
    labels = torch.tensor([task.tokenizer(worst["model"])["input_ids"][:-1]])  # it has not ended
    assert worst["log_probability"]["model"] == pytest.approx(
        -float(model(torch.tensor([row["input_ids"]]), labels=labels).loss.detach()) * labels.shape[1], rel=1e-4
    )
    gaps = [difference["gap"] for difference in search["differences"] if difference["gap"] is not None]
    assert gaps == sorted(gaps, reverse=True) and min(gaps) > 0  # a greedy search prefers its own token
    per_token = worst["log_probability_per_token"]["model"] * labels.shape[1]
    assert per_token == pytest.approx(worst["log_probability"]["model"])


def test_near_ties_are_no_differences(pairs):
    """Two tokens with nearly one row of the vocabulary: rounding decides which comes out."""
    model, task, rows = pairs
    with torch.no_grad():
        weight = model.get_output_embeddings().weight
        token = most_frequent_token(task, rows)
        other = 4 if token != 4 else 5
        weight[other] = weight[token] * (1 - 1e-6)
    stock = stock_of(model)
    stock.final_logits_bias[0, other] = 1e-4  # prefers the other
    proof = compare(model, stock, task, rows, EXACT)
    search = proof.report["searches"]["greedy"]
    assert search["different"] == search["near_ties"] > 0
    assert "answers are equal" not in (proof.problem or "")


# ---- scores


def test_the_interval_is_of_sacrebleus_score():
    generator = np.random.default_rng(3)
    words = [[str(word) for word in generator.integers(9, size=12)] for _ in range(60)]
    references = [" ".join(row) for row in words]
    ours = [" ".join(row[:-1]) for row in words]
    theirs = [" ".join(row[:9]) if number % 2 else " ".join(row[:-1]) for number, row in enumerate(words)]
    result = compare_bleu(ours, theirs, references, SacrebleuConfig())
    assert result["model"] == pytest.approx(bleu(ours, references)["sacrebleu"])
    assert result["export"] == pytest.approx(bleu(theirs, references)["sacrebleu"])
    low, high = result["interval"]
    assert low < result["difference"] < high < 0
    assert compare_bleu(ours, theirs, references, SacrebleuConfig())["interval"] == [low, high]
    lists = compare_bleu(ours, theirs, [[row, "x"] for row in references], SacrebleuConfig(lowercase=True))
    assert lists["model"] == pytest.approx(result["model"])
    assert lists["export"] == pytest.approx(sacrebleu.corpus_bleu(theirs, [references, ["x"] * 60]).score)


def test_another_tokenizer_is_found(pairs):
    _, task, rows = pairs
    other = copy.deepcopy(task.tokenizer)
    assert find_other_tokens(task, other, rows.features) is None
    other.backend_tokenizer.post_processor = None  # adds no end token
    assert "its tokenizer reads" in (find_other_tokens(task, other, rows.features) or "")


# ---- outputs


def classifier(tokenizer):
    sizes = {name: TINY[name] for name in ("d_model", "encoder_layers", "attention_heads", "ffn_dim")}
    model = TransformerForSequenceClassification(TransformerClassifierConfig(vocab_size=len(tokenizer), **sizes))
    task = TextClassification(tokenizer, ["no", "yes"])
    return model, task, [{"source": f"{number} 2 3", "target": "yes"} for number in range(9)]


def language_model(tokenizer):
    config = LSTMConfig(vocab_size=len(tokenizer), embedding_size=8, hidden_size=8, num_hidden_layers=1)
    model = LSTMForCausalLM(config)
    model.generation_config.max_new_tokens = 5
    generator = np.random.default_rng(0)
    return model, LanguageModeling(tokenizer), [{"source": " ".join(map(str, generator.integers(8, size=400)))}]


def forecaster(tokenizer):
    sizes = {name: TINY[name] for name in ("d_model", "encoder_layers", "attention_heads", "ffn_dim")}
    lengths = {"context_length": 12, "prediction_length": 4, "patch_length": 4, "patch_stride": 2}
    statistics = {"series": ["a", "b"], "means": [1e6, 0.0], "stds": [1e3, 1e-3]}
    model = TransformerForecaster(TransformerForecasterConfig(**sizes, **lengths, **statistics))
    rows = [{"a": 1e6 + 1e3 * np.sin(step), "b": 1e-3 * np.cos(step)} for step in range(20)]
    return model, Forecasting(12, 4, ["a", "b"], [1e3, 1e-3]), rows


@pytest.fixture(params=[classifier, language_model, forecaster], ids=lambda make: make.__name__)
def outputs(request, finished_run, monkeypatch):
    """A random model, its task, and rows."""
    monkeypatch.setattr(language_modeling, "HELD_OUT_CHUNK", 8)
    model, task, rows = request.param(load_trained(finished_run)[1].tokenizer)
    features = task.to_evaluation(encode_rows(task, Dataset.from_list(rows)))
    return randomise(model, 0.5), task, ComparedRows(features, "rows", 0, False, SacrebleuConfig())


class Late:
    """An engine whose outputs are those of a copy, with a state that it forgets, or numbers that are changed."""

    def __init__(self, model, forgets=False, factor=1.0):
        self.model, self.forgets, self.factor = model, forgets, factor
        self.config, self.generation_config = model.config, getattr(model, "generation_config", None)
        self.generate = getattr(model, "generate", None)

    def __call__(self, past_key_values=None, **batch):
        state = {} if self.forgets or past_key_values is None else {"past_key_values": past_key_values}
        outputs = self.model(**batch, **state)
        name = "logits" if "logits" in outputs else "prediction_outputs"
        outputs[name] = outputs[name] * self.factor
        return outputs


def test_equal_outputs_are_equivalent(outputs):
    model, task, rows = outputs
    proof = compare(model, Late(copy.deepcopy(model)), task, rows, EXACT)
    assert proof.problem is None and proof.report["outputs"]["largest_difference"] == 0
    choices = proof.report["outputs"]["choices"]
    assert choices["different"] == 0 and (choices["compared"] > 0) is not isinstance(task, Forecasting)
    assert ("searches" in proof.report) is model.can_generate()


@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_other_outputs_are_refused(outputs, factor):
    model, task, rows = outputs
    proof = compare(model, Late(copy.deepcopy(model), factor=factor), task, rows, EXACT)
    assert proof.problem is not None and "outputs differ by" in proof.problem and "more than 0.0001" in proof.problem


def test_a_state_that_is_forgotten_is_found(outputs):
    model, task, rows = outputs
    problem = compare(model, Late(copy.deepcopy(model), forgets=True), task, rows, EXACT).problem
    assert (problem is not None) is isinstance(task, LanguageModeling)


def test_how_a_language_model_goes_on_is_compared(outputs):
    model, task, rows = outputs
    if not model.can_generate():
        return
    engine = Late(copy.deepcopy(model))
    other = randomise(copy.deepcopy(model), 2.0)
    engine.generate = other.generate
    proof = compare(model, engine, task, rows, EXACT)
    assert proof.problem is not None and proof.problem.startswith("greedy: ")


@pytest.mark.parametrize(("lead", "num_near_ties"), [(5e-4, 9), (5e-3, 0)])
def test_classes_may_differ_where_both_are_as_probable(finished_run, monkeypatch, lead, num_near_ties):
    model, task, rows = classifier(load_trained(finished_run)[1].tokenizer)
    features = encode_rows(task, Dataset.from_list(rows))

    def gives(*logits):
        return lambda input_ids, **batch: SequenceClassifierOutput(logits=torch.tensor([logits] * len(input_ids)))

    engine = Late(copy.deepcopy(model))
    monkeypatch.setattr(model, "forward", gives(100.0, 100 + lead))
    monkeypatch.setattr(engine.model, "forward", gives(100 + lead, 100.0))
    proof = compare(model.eval(), engine, task, ComparedRows(features, "rows", 0, False, SacrebleuConfig()), EXACT)
    assert proof.report["outputs"]["choices"] == {"compared": 9, "different": 9, "near_ties": num_near_ties}
    assert (proof.problem is None) is bool(num_near_ties)
