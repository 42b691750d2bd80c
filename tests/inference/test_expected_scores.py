"""What is known of scores before training: the best that a tokenizer can reach, and languages that BLEU cannot cut."""

import re
from functools import partial

import pytest

from pipeline.data.rows import separate
from pipeline.inference.expected_scores import find_lost_text, find_unread_language, score_warnings
from pipeline.inference.metrics import bleu, chrf, exact_match
from pipeline.tasks.sequence_to_sequence import SequenceToSequence
from pipeline.tasks.text_classification import TextClassification
from tokenizer.training import train

TARGETS = ["(Isn't it) well-known, at 3.5 %?", "A plain line", "Don't: a-b!"]
CHINESE = "我们昨天在河边看到了一只白色的小狗。"


def features_of(targets, kind="bpe", task_class=SequenceToSequence, **settings):
    """A task whose tokenizer was trained on the targets, and features of rows with them."""
    texts = [text for target in targets for text in ([target] if isinstance(target, str) else target)]
    task = task_class(train(texts * 4, kind, 400, max_length=64, **settings))
    rows = {"source": ["a"] * len(targets), "target": targets, "row": list(range(len(targets)))}
    return task, separate(task.encode(rows))[0]


def test_what_wordpiece_and_lower_case_lose():
    task, features = features_of(TARGETS, "wordpiece")
    lost = find_lost_text(task, features, [exact_match, chrf])
    assert lost is not None and (lost.count, lost.rows) == (2, 3)
    assert (lost.reference, lost.written) == (TARGETS[0], "( Isn ' t it ) well - known, at 3. 5 %?")
    assert lost.scores == {"exact_match": (1 / 3, 1)}, "chrF leaves spaces out"
    task, features = features_of(["A Plain Line of Words Here"], lowercase=True)
    lost = find_lost_text(task, features, [exact_match, bleu])
    assert lost is not None and lost.written == "a plain line of words here" and lost.scores["exact_match"] == (0, 1)
    assert lost.scores["sacrebleu"] == (bleu([lost.written], [lost.reference])["sacrebleu"], pytest.approx(100))
    assert find_lost_text(task, features, [partial(bleu, lowercase=True)]) is None


def test_what_is_written_as_it_stands_costs_no_scoring():
    task, features = features_of(TARGETS, "bpe")
    assert find_lost_text(task, features, [lambda *_: pytest.fail("a metric was computed")]) is None
    classes = TextClassification(task.tokenizer, ["No", "YES"])
    rows, _ = separate(classes.encode({"source": ["a", "b"], "target": ["YES", "No"], "row": [0, 1]}))
    assert find_lost_text(classes, rows, [lambda *_: pytest.fail("a class is not written by a tokenizer")]) is None


def test_of_several_references_the_first_is_what_a_model_learns_to_write():
    task, features = features_of([["One", "one"], ["Two", "TWO"]], lowercase=True)
    lost = find_lost_text(task, features, [exact_match])
    assert lost is not None and lost.scores == {"exact_match": (0.5, 1)}


@pytest.mark.parametrize(
    "text, advice",
    [
        (CHINESE, "look Chinese, .*; set it to zh$"),
        ("昨日、川辺で白い小さな犬を見ました。", "look Japanese, .*set it to ja-mecab .* or char"),
        ("우리는 어제 강가에서 하얀 강아지를 보았습니다.", "look Korean, .*set it to ko-mecab .* or char"),
        ("เมื่อวานนี้เราเห็นลูกสุนัขสีขาวที่ริมแม่น้ำ", "look Thai, .*set it to flores200 .* or char"),
        ("ມື້ວານນີ້ພວກເຮົາໄດ້ເຫັນລູກໝາສີຂາວ", "look Lao"),
        ("ម្សិលមិញយើងបានឃើញកូនឆ្កែពណ៌ស", "look Khmer"),
        ("မနေ့ကကျွန်တော်တို့ခွေးဖြူလေးတစ်ကောင်ကိုတွေ့ခဲ့တယ်", "look Burmese"),
    ],
)
def test_languages_that_are_not_cut_at_spaces(text, advice):
    for tokenize in ("13a", "intl", "none"):
        warning = find_unread_language([text, "an English line"], tokenize)
        assert warning is not None and warning.startswith(f"evaluation.sacrebleu.tokenize: {tokenize} cuts texts")
        assert "1 of 2 targets" in warning
        assert re.search(advice, warning)
    for tokenize in ("zh", "ja-mecab", "ko-mecab", "char", "flores200"):
        assert find_unread_language([text], tokenize) is None


@pytest.mark.parametrize(
    "texts",
    [
        ["un petit chien blanc"],
        ["маленькая белая собака", "ένα μικρό σκυλί", "كلب أبيض صغير", "एक छोटा सफ़ेद कुत्ता"],
        ["我们 昨天 在 河边 看到 了 一 只 白色 的 小 狗 。"],
        ["우리 는 어제 강가 에서 하얀 강아지 를 보 았 습니다 ."],
        [*["a line"] * 19, CHINESE],
        ["1 2 3", "..."],
    ],
    ids=["french", "other letters", "chinese words", "korean morphemes", "one row of many", "no letters"],
)
def test_texts_that_are_cut_at_spaces(texts):
    assert find_unread_language(texts, "13a") is None


def test_warnings_of_a_run(make_config):
    task, features = features_of([CHINESE, "Zwei Wörter"], lowercase=True)
    config = make_config(evaluation={"metrics": ["sacrebleu", "exact_match"]})
    lost, unread = score_warnings(config, task, features, [bleu, exact_match])
    assert lost.startswith("tokenizer: 1 of 2 targets cannot be written as they stand: 'Zwei Wörter'")
    assert "exact_match 0.5 of 1" in lost and "\n" not in lost
    assert unread.endswith("set it to zh")
    config = make_config(evaluation={"metrics": ["sacrebleu"], "sacrebleu": {"tokenize": "zh", "lowercase": True}})
    lines = score_warnings(config, task, features, [partial(bleu, tokenize="zh", lowercase=True)])
    assert lines == [] == score_warnings(config, task, [], [bleu]) == score_warnings(config, task, features, [])
