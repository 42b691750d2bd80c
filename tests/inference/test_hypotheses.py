"""Several answers, their scores, sampling by each row's own numbers, probabilities of tokens, alignments."""

import math

import pytest
import torch
from transformers import GenerationConfig

from pipeline.data.rows import separate
from pipeline.errors import ConfigError
from pipeline.inference.hypotheses import Hypothesis, Wanted, find_hypotheses
from pipeline.models.configuration_classifier import TransformerClassifierConfig
from pipeline.models.configuration_lstm import LSTMConfig
from pipeline.models.modeling_classifier import TransformerForSequenceClassification
from pipeline.models.modeling_lstm import LSTMForCausalLM
from pipeline.tasks.language_modeling import LanguageModeling
from pipeline.tasks.text_classification import TextClassification
from tests import families
from tests.conftest import TINY

TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 1}
# Several ends, so that answers differ in length; a random model would also say start and padding.
PLAIN = {**TOKENS, "max_new_tokens": 6, "eos_token_id": [2, 6, 9], "suppress_tokens": [0, 1]}
SAMPLING = {**PLAIN, "do_sample": True, "top_k": 6, "temperature": 1.5}
TEXTS = ["a b c d e f g", "h", "a c e", "b d f h", "g f e d c b a h", "a", "b b", "c b a"]
KINDS = ["own", "lstm", "marian", "bart", "t5", "mbart"]


@pytest.fixture
def make(make_model, task):
    """Makes a random model of a kind that tells texts apart, and its task."""

    def make(kind: str):
        size = len(task.tokenizer)
        torch.manual_seed(0)
        if kind == "own":
            model = make_model(vocab_size=size, tie_word_embeddings=False)
        elif kind == "lstm":
            model = LSTMForCausalLM(LSTMConfig(vocab_size=size, embedding_size=12, hidden_size=16)).eval()
        else:
            return families.make_model(kind, size, **TOKENS), task
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.5)
        return model, LanguageModeling(task.tokenizer) if kind == "lstm" else task

    return make


def ask(model, task, settings: dict, texts=TEXTS, batch_size: int = 8, **wanted) -> list[list[Hypothesis]]:
    features, _ = separate(task.encode({"source": texts, "row": list(range(len(texts)))}))
    model.generation_config = generation = GenerationConfig(**settings)
    answers = []
    for first in range(0, len(features), batch_size):
        samples = features[first : first + batch_size]
        answers += find_hypotheses(model, task, samples, task.collate(samples), generation, Wanted(**wanted))
    return answers


@torch.no_grad()
def step_by_step(model, task, text: str, tokens: list[str]) -> tuple[list[float], list[int]]:
    """The probability of each token, and where it looks, from a call for each that sees no later one."""
    feature = task.encode({"source": [text], "row": [0]})[0]
    batch = {name: tensor for name, tensor in task.collate([feature]).items() if name != "labels"}
    said: list[int] = []
    probabilities: list[float] = []
    places: list[int] = []
    is_pair = model.config.is_encoder_decoder
    for token_id in task.tokenizer.convert_tokens_to_ids(tokens):
        if is_pair:
            start = [model.config.decoder_start_token_id, *said]
            outputs = model(**batch, decoder_input_ids=torch.tensor([start]), output_attentions=True, use_cache=False)
            places.append(int(outputs.cross_attentions[-1][0, :, -1].mean(0).argmax()))
        else:
            outputs = model(torch.cat([batch["input_ids"], torch.tensor([said], dtype=torch.long)], 1))
        probabilities.append(outputs.logits[0, -1].softmax(-1)[token_id].item())
        said.append(token_id)
    return probabilities, places


@pytest.mark.parametrize("kind", KINDS)
def test_without_wishes_it_is_what_the_task_predicts(make, kind):
    model, task = make(kind)
    answers = ask(model, task, PLAIN)
    batch = task.collate(task.encode({"source": TEXTS, "row": list(range(len(TEXTS)))}))
    assert answers == [[Hypothesis(text)] for text in task.predict(model, batch, model.generation_config)]


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_and_alignments_are_those_of_a_loop(make, kind):
    """Of a greedy answer, whose score is the sum of their logarithms; padding on both sides changes nothing."""
    model, task = make(kind)
    model.set_attn_implementation("eager")
    is_pair = model.config.is_encoder_decoder
    answers = ask(model, task, PLAIN, scores=True, token_probabilities=True, alignments=is_pair)
    assert len({len(answer.tokens or "") for [answer] in answers}) > 1 or kind != "own", "all of one length"
    for text, [answer] in zip(TEXTS, answers, strict=True):
        probabilities, places = step_by_step(model, task, text, answer.tokens or [])
        assert answer.probabilities == pytest.approx(probabilities, rel=1e-4)
        assert answer.score == pytest.approx(sum(map(math.log, probabilities)), rel=1e-4)
        if is_pair:
            assert answer.alignment == places
            assert answer.source_tokens == [*text.split(), "</s>"]


def test_attentions_are_what_the_alignments_are_made_of(make):
    model, task = make("own")
    for text, [answer] in zip(TEXTS, ask(model, task, PLAIN, alignments=True, attentions=True), strict=True):
        weights = torch.tensor(answer.attention)  # (T, S), without the padding of the batch
        assert weights.shape == (len(answer.tokens), len(text.split()) + 1)
        assert weights.argmax(-1).tolist() == answer.alignment
        torch.testing.assert_close(weights.sum(-1), torch.ones(len(answer.tokens)))


@pytest.mark.parametrize("kind", KINDS)
def test_beams_and_their_scores_are_those_of_generate(make, kind):
    model, task = make(kind)
    settings = PLAIN | {"num_beams": 4, "length_penalty": 2.0, "no_repeat_ngram_size": 2}
    found = ask(model, task, settings, num_best=3, scores=True)
    features = task.encode({"source": TEXTS, "row": list(range(len(TEXTS)))})
    for feature, hypotheses in zip(features, found, strict=True):
        alone = model.generate(
            torch.tensor([feature["input_ids"]]),
            num_return_sequences=3,
            return_dict_in_generate=True,
            output_scores=True,
        )
        texts = task.tokenizer.batch_decode(alone.sequences, skip_special_tokens=True)
        assert [hypothesis.text for hypothesis in hypotheses] == texts
        assert [hypothesis.score for hypothesis in hypotheses] == pytest.approx(
            alone.sequences_scores.tolist(), rel=1e-4
        )


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}], ids=str)
@pytest.mark.parametrize("kind", ["own", "lstm", "marian"])
def test_a_seed_gives_the_same_answers_in_any_batch(make, kind, settings):
    model, task = make(kind)
    wanted = {"num_best": 2, "scores": True, "seed": 5}
    answers = ask(model, task, SAMPLING | settings, **wanted)
    for batch_size in (1, 3):
        others = ask(model, task, SAMPLING | settings, batch_size=batch_size, **wanted)
        assert [[one.text for one in row] for row in others] == [[one.text for one in row] for row in answers]
    assert [
        [one.text for one in row] for row in ask(model, task, SAMPLING | settings, **wanted | {"seed": 6})
    ] != answers
    assert all((first.score or 0) >= (second.score or 0) for first, second in answers)
    assert len({one.text for row in answers for one in row}) > 3


def test_a_row_keeps_its_answer_where_others_are_before_it(make):
    model, task = make("own")
    answers = ask(model, task, SAMPLING, seed=1)
    features = task.encode({"source": TEXTS, "row": list(range(len(TEXTS)))})[::-1]
    reverse = find_hypotheses(model, task, features, task.collate(features), None, Wanted(seed=1))
    assert reverse[::-1] == answers


def test_what_is_sampled_has_the_warped_probabilities(make):
    """The first tokens of one source in many rows, under temperature and top_k."""
    model, task = make("own")
    rows = 600
    answers = ask(
        model, task, {**SAMPLING, "max_new_tokens": 1}, ["a b c"] * rows, 200, seed=0, token_probabilities=True
    )
    outputs = model(torch.tensor([[*task.tokenizer("a b c")["input_ids"]]]), decoder_input_ids=torch.tensor([[1]]))
    best = (outputs.logits[0, -1, 2:] / 1.5).topk(6)  # start and padding are suppressed
    counts = dict.fromkeys(task.tokenizer.convert_ids_to_tokens((best.indices + 2).tolist()), 0)
    for [answer] in answers:
        assert answer.tokens and answer.probabilities
        counts[answer.tokens[0]] += 1
    expected = (best.values.softmax(-1) * rows).tolist()
    chi_squared = sum((count - mean) ** 2 / mean for count, mean in zip(counts.values(), expected, strict=True))
    assert chi_squared < 15.1  # 1 % of all seeds exceed it, with 5 degrees of freedom
    plain = outputs.logits[0, -1].softmax(-1)[best.indices + 2].tolist()
    said = {round(answer.probabilities[0], 5) for [answer] in answers if answer.probabilities}
    assert said and said <= {round(share, 5) for share in plain}


def test_more_beams_than_sequences(make):
    """Only so many as there are: one token of three, each the end."""
    model, task = make("own")
    keep = [7, 8, 2]
    banned = [number for number in range(len(task.tokenizer)) if number not in keep]
    found = ask(model, task, PLAIN | {"num_beams": 4, "max_new_tokens": 1, "suppress_tokens": banned}, num_best=4)
    assert {len(row) for row in found} == {3}


def test_a_classifier_names_its_most_probable_classes(task):
    torch.manual_seed(0)
    labels = ["bad", "good", "odd"]
    config = TransformerClassifierConfig(vocab_size=len(task.tokenizer), num_labels=3, **{**TINY, "dropout": 0.0})
    model = TransformerForSequenceClassification(config).eval()
    classes = TextClassification(task.tokenizer, labels)
    features, _ = separate(classes.encode({"source": TEXTS, "row": list(range(len(TEXTS)))}))
    batch = classes.collate(features)
    answers = find_hypotheses(model, classes, features, batch, None, Wanted(num_best=5, scores=True))
    assert all({one.text for one in row} == {*labels} for row in answers)
    assert [sum(math.exp(one.score or 0) for one in row) for row in answers] == pytest.approx([1] * len(answers))
    best = find_hypotheses(model, classes, features, batch, None, Wanted(seed=1))
    assert [row[0].text for row in best] == [row[0].text for row in answers]
    with pytest.raises(ConfigError, match="token_probabilities: a classifier generates no tokens"):
        find_hypotheses(model, classes, features, batch, None, Wanted(token_probabilities=True))


@pytest.mark.parametrize(
    ("kind", "settings", "wanted", "message"),
    [
        (
            "own",
            {},
            {"num_best": 3},
            r"num_best: 3 hypotheses need as many beams, .* is 1; .* num_beams=3 .* do_sample=true",
        ),
        ("own", {"num_beams": 2}, {"num_best": 3}, "generation.num_beams is 2; set num_beams=3 or more"),
        ("own", {"num_beams": 2, "do_sample": True}, {"num_best": 3}, "or sample each by itself: num_beams=1"),
        ("lstm", {}, {"alignments": True}, "alignments: a LSTMForCausalLM has no source to attend to"),
        ("lstm", {}, {"attentions": True}, "attentions: a LSTMForCausalLM has no source to attend to"),
    ],
    ids=str,
)
def test_what_cannot_be_given_is_named(make, kind, settings, wanted, message):
    model, task = make(kind)
    with pytest.raises(ConfigError, match=message):
        ask(model, task, PLAIN | settings, **wanted)


def test_the_model_is_as_before_where_it_aligned(make):
    model, task = make("own")
    kernel = model.config._attn_implementation
    assert kernel != "eager"
    ask(model, task, PLAIN, alignments=True)
    assert model.config._attn_implementation == kernel
