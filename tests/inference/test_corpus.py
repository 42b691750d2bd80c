from itertools import count

import pytest
from transformers import GenerationConfig

from pipeline.data.corpus import Text, given_texts
from pipeline.errors import ConfigError, DataError
from pipeline.inference.corpus import Answer, AnswerSettings, Summary, answer, join_texts, windows
from pipeline.inference.corpus import _concatenate as concatenate
from pipeline.inference.hypotheses import Hypothesis, Wanted
from pipeline.tasks.forecasting import Forecasting
from pipeline.tasks.language_modeling import LanguageModeling
from pipeline.tasks.sequence_to_sequence import SequenceToSequence
from tokenizer.training import train

GENERATION = GenerationConfig(max_new_tokens=5, pad_token_id=0, eos_token_id=2, decoder_start_token_id=1)
SKIP = AnswerSettings(on_bad_row="skip")


@pytest.fixture
def short() -> SequenceToSequence:
    """Of texts of six tokens at most, `</s>` included."""
    return SequenceToSequence(train(["a b c d e f g h Two dogs cats . ?"] * 2, "word", 40, max_length=6))


@pytest.fixture
def ask(make_model, short):
    model = make_model(vocab_size=len(short.tokenizer))

    def ask(*contents, settings=SKIP, task=short, generation=GENERATION):
        return answer(model, task, list(given_texts(contents).read()), generation, settings)

    return ask


@pytest.fixture
def echo(monkeypatch):
    """A model that says its source in capitals."""

    def find(model, task, samples, batch, generation, wanted):
        assert batch["input_ids"].shape[0] == len(samples)
        return [[Hypothesis(sample["source"].upper())] for sample in samples]

    monkeypatch.setattr("pipeline.inference.corpus.find_hypotheses", find)


def texts_of(answers: list[Answer]) -> list[list[str]]:
    return [[hypothesis.text for hypothesis in one.hypotheses] for one in answers]


def test_windows_read_no_further_than_they_must():
    numbers = count()
    assert next(windows(numbers, 3)) == [0, 1, 2] and next(numbers) == 3
    assert list(windows(range(5), 2)) == [[0, 1], [2, 3], [4]] and list(windows([], 2)) == []


def test_answers_are_in_the_order_of_the_texts(ask, echo):
    contents = ["a b", "", "c", "  ", "d e f g", "a"]
    answers = ask(*contents, settings=AnswerSettings(batch_size=2))
    assert [one.source for one in answers] == contents
    assert texts_of(answers) == [["A B"], [], ["C"], [], ["D E F G"], ["A"]]


def test_answers_are_those_of_each_text_by_itself(ask):
    contents = ["a b", "c", "d e f g", "a"]
    assert ask(*contents) == [answer for text in contents for answer in ask(text)]


def test_an_overlong_text_is_answered_by_the_sentence(ask, echo):
    (whole, other) = ask("Two b dogs . Two d cats . Two", "a")
    assert whole.sentences == 3 and not whole.is_long and other.sentences == 1
    assert texts_of([whole, other]) == [["TWO B DOGS . TWO D CATS . TWO"], ["A"]]
    assert ask("Two b dogs .\tTwo d cats")[0].hypotheses[0].text == "TWO B DOGS . TWO D CATS"  # one by one
    assert ask("dogs . Two c")[0].sentences == 1  # is not too long
    (whole,) = ask("Two b c d e f dogs . Two c")
    assert whole.sentences == 2 and whole.is_long  # one of them is, but the model has positions for it


def test_an_overlong_text_is_refused_where_that_is_asked_for(ask):
    answers = ask("a b", "Two b dogs . Two d cats .", settings=AnswerSettings(overlong="refuse", on_bad_row="skip"))
    assert answers[1].problem == "source has 9 tokens, where the texts of the training have 6 at most"
    assert answers[0].problem is None and not answers[1].hypotheses
    with pytest.raises(DataError, match=r"text 2: source has 9 tokens, .*; change the text, or .* --on-bad-row skip"):
        ask("a b", "Two b dogs . Two d cats .", settings=AnswerSettings(overlong="refuse"))


def test_a_sentence_that_the_model_cannot_read_is_a_problem(ask, short):
    bounded = SequenceToSequence(short.tokenizer, (8, 8))
    long = "a b c d e f g h a b"
    assert "source has 11 tokens, and the model has positions for 8" in str(ask(long, task=bounded)[0].problem)
    (one,) = ask(f"Two dogs . Two {long}", task=bounded)
    assert one.problem == "sentence 2: source has 12 tokens, and the model has positions for 8"
    assert ask(long)[0].problem is None and ask(long)[0].is_long  # without an end of positions
    assert "no end of a sentence to split it at" in str(ask("a b c d e " * 5)[0].problem)


def test_what_could_not_be_read_has_no_answer(make_model, short):
    model = make_model(vocab_size=len(short.tokenizer))
    texts = [Text(0, "x:1", "a"), Text(1, "x:2", "", "invalid UTF-8")]
    good, bad = answer(model, short, texts, GENERATION, SKIP)
    assert (bad.place, bad.problem, bad.hypotheses) == ("x:2", "invalid UTF-8", []) and good.problem is None
    with pytest.raises(DataError, match="x:2: invalid UTF-8"):
        answer(model, short, texts, GENERATION, AnswerSettings())


def test_models_without_texts_and_blank_prompts(make_model, short):
    texts = list(given_texts(["a", " "]).read())
    with pytest.raises(ConfigError, match="this model takes no texts"):
        answer(make_model(), Forecasting(8, 4, ["value"], [1.0]), texts, GENERATION, SKIP)
    with pytest.raises(DataError, match="text 2: the prompt is empty"):
        answer(make_model(), LanguageModeling(short.tokenizer), texts, GENERATION, AnswerSettings())


def test_several_hypotheses_of_sentences_are_joined_rank_by_rank(ask):
    beams = GenerationConfig(**{**GENERATION.to_diff_dict(), "num_beams": 2})
    asked = {"settings": AnswerSettings(wanted=Wanted(num_best=2, scores=True)), "generation": beams}
    (whole,), (one, two) = ask("Two b dogs . Two d cats .", **asked), ask("Two b dogs .", "Two d cats .", **asked)
    for rank in (0, 1):
        pair = one.hypotheses[rank], two.hypotheses[rank]
        assert whole.hypotheses[rank].text == join_texts(*(half.text for half in pair))
        assert whole.hypotheses[rank].score == pytest.approx(sum(half.score for half in pair))


def test_joined_hypotheses_count_all_source_tokens():
    first = Hypothesis("x y", -1.0, ["x", "y"], [0.5, 0.25], [0, 1], ["a", "b", "."])
    assert concatenate([first, Hypothesis("z", -2.0, ["z"], [0.125], [1], ["c", "d"])]) == Hypothesis(
        "x y z", -3.0, ["x", "y", "z"], [0.5, 0.25, 0.125], [0, 1, 4], ["a", "b", ".", "c", "d"]
    )


def test_no_sentence_attends_to_another():
    first = Hypothesis("x y", source_tokens=["a", "b"], attention=[[0.5, 0.5], [0.0, 1.0]])
    joined = concatenate([first, Hypothesis("z", source_tokens=["c"], attention=[[1.0]])])
    assert joined.attention == [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    silent = Hypothesis("", source_tokens=["a", "b"], attention=[])
    assert concatenate([silent, Hypothesis("z", source_tokens=["c"], attention=[[1.0]])]).attention == [[0.0, 0.0, 1.0]]


@pytest.mark.parametrize(
    ("first", "second", "joined"),
    [("Hi.", "Bye.", "Hi. Bye."), ("你好。", "再见。", "你好。再见。"), ("", "Bye.", "Bye."), ("Hi.", "", "Hi.")],
)
def test_sentences_are_joined_as_their_script_joins_them(first, second, joined):
    assert join_texts(first, second) == joined


def test_the_summary_counts_and_names_the_first_failure():
    said = [Hypothesis("x")]
    answers = [
        Answer("a", said),
        Answer("", []),
        Answer("b. c.", said, sentences=2, is_long=True),
        Answer("", [], place="f:4", problem="invalid UTF-8"),
        Answer("", [], place="f:5", problem="null"),
    ]
    summary = Summary()
    assert list(summary.counting(answers)) == answers and summary.has_remarks and not Summary(3, 1).has_remarks
    assert str(summary) == (
        "5 texts, 1 empty, 1 split at the ends of sentences, 1 longer than any in training, "
        "2 without an answer (the first: f:4: invalid UTF-8)"
    )
