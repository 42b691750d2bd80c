"""Rows of many languages: what the model is told of them, what is counted, and that it does as it is told."""

import json
import random
import shutil
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, MBart50Tokenizer, MBartTokenizer

from pipeline.data.rows import BadRow, Columns, separate
from pipeline.errors import ConfigError, DataError
from pipeline.exporting import equivalence
from pipeline.exporting.export import EXPORTS, export
from pipeline.inference.engines.base import load_engine
from pipeline.inference.evaluation import evaluate
from pipeline.inference.generation import generate
from pipeline.inference.hypotheses import Wanted, find_hypotheses
from pipeline.models.modeling_seq2seq import IGNORED, shift_right
from pipeline.run import train
from pipeline.setup.tokenizer_setup import prepare_tokenizer
from pipeline.tasks.row_languages import choose_from
from pipeline.tasks.sequence_to_sequence import SequenceToSequence
from pipeline.tasks.trained_model import load_trained
from tests.conftest import TINY, small_config
from tests.families import make_model as make_other_model
from tokenizer.training import train as train_tokenizer

ROWS = {
    "source": ["a b", "c", "d"],
    "target": ["b a", "c d", "d"],
    "target_lang": ["de", "fr", "de"],
    "source_tag": ["<bt>"] * 3,
    "row": [0, 1, 2],
}


@pytest.fixture(scope="module")
def tagged():
    """A tokenizer with the tags of two languages and of sources, and the letters a to h."""
    tokenizer = train_tokenizer(["a b c d e f g h"] * 2, "word", 40, max_length=16)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<2de>", "<2fr>", "<bt>"]})
    return tokenizer


@pytest.fixture
def make_task(make_model, tagged):
    """Makes a small random model that is told languages, and its task."""

    def make(where: str = "decoder", **changes):
        tags = {code: tagged.convert_tokens_to_ids(f"<2{code}>") for code in ("de", "fr")}
        model = make_model(vocab_size=len(tagged), languages=tags, target_lang_in=where, **changes)
        model.generation_config.update(max_new_tokens=5, decoder_start_token_id=1, pad_token_id=0)
        return model, SequenceToSequence.from_model(tagged, model.config)

    return make


def tokens(task, ids) -> str:
    return " ".join(task.tokenizer.convert_ids_to_tokens([number for number in ids if number != IGNORED]))


def test_tags_stand_where_the_config_says(make_task):
    _, task = make_task("source")
    (german, french, _) = task.encode(ROWS)
    assert tokens(task, german["input_ids"]) == "<2de> <bt> a b </s>" and tokens(task, german["labels"]) == "b a </s>"
    assert tokens(task, french["input_ids"]) == "<2fr> <bt> c </s>" and task.lengths(german) == (5, 3)
    assert task.collate([german]).keys() == {"input_ids", "attention_mask", "labels"}
    assert german["target_lang"] == "de" and "source_lang" not in german
    _, task = make_task("decoder")
    (german, french, _) = task.encode({**ROWS, "source_lang": ["en"] * 3})
    assert tokens(task, german["input_ids"]) == "<bt> a b </s>" and german["source_lang"] == "en"
    assert tokens(task, german["decoder_start"]) == "<s> <2de>" and task.lengths(german) == (4, 4)


def test_a_told_language_is_no_item(make_task):
    """In no label, in one batch of many languages, padded or packed."""
    model, task = make_task()
    features = task.encode(ROWS)
    batch = task.collate(features)
    assert batch["decoder_input_ids"].shape == batch["labels"].shape == (3, 4)
    assert [tokens(task, row) for row in batch["decoder_input_ids"]] == [
        "<s> <2de> b a",
        "<s> <2fr> c d",
        "<s> <2de> d <pad>",
    ]
    assert [tokens(task, row) for row in batch["labels"]] == ["b a </s>", "c d </s>", "d </s>"]
    assert (batch["labels"][:, 0] == IGNORED).all()
    with torch.no_grad():
        counts, _ = task.count_items(model(**batch), batch)
        scored = task.score(model, batch)
        packed = task.pack(features)
        losses = [
            one(**some, num_items_in_batch=1).loss for one in (model.train(), model.eval()) for some in (batch, packed)
        ]
    assert counts.tolist() == [row["items"] for row in scored] == [3, 3, 2]
    assert packed["labels"].ne(IGNORED).sum() == 8
    for loss in losses[2:]:
        assert loss.item() == pytest.approx(sum(row["loss"] for row in scored), rel=1e-5)
    # Were it a label, there would be three items more.
    whole = torch.where(batch["labels"].eq(IGNORED), batch["decoder_input_ids"].roll(-1, 1), batch["labels"])
    assert torch.equal(shift_right(whole, 1, 0)[:2], batch["decoder_input_ids"][:2])


def test_the_longest_rows_fit_with_their_tags(make_task, make_config):
    _, task = make_task()
    limits = make_config(data={"max_source_length": 5, "max_target_length": 4}).data
    features = task.encode(ROWS, limits)
    assert task.lengths(task.stretch(features[2], limits)) == (5, 4)
    limits = make_config(data={"max_source_length": 5, "max_target_length": 3}).data
    assert [isinstance(row, BadRow) for row in task.encode(ROWS, limits)] == [True, True, False]


def test_what_a_row_must_say(make_task):
    model, task = make_task()
    row = {"source": ["a"], "target": ["b"], "row": [0]}

    def encode(**marks):
        return task.encode(row | {name: [value] for name, value in marks.items()})[0]

    assert "target_lang is missing, where the model must be told it; choose from de, fr" in str(encode())
    assert "target_lang is 'es', which the model does not know; choose from de, fr" in str(encode(target_lang="es"))
    assert "target_lang is None" not in str(encode(target_lang=None)) and isinstance(encode(target_lang=None), BadRow)
    assert "source_tag is <gt>, which is not a special token" in str(encode(target_lang="de", source_tag="<gt>"))
    with pytest.raises(ConfigError, match=r"target_lang is missing; say .*--target-lang.*; choose from de, fr"):
        generate(model, task, ["a"])
    with pytest.raises(ConfigError, match=r"target_lang is 'd', which the model does not know; choose from de, fr"):
        generate(model, task, ["a"], target_lang="d")
    with pytest.raises(DataError, match="target_lang is missing"):
        evaluate(model, task, [{"source": "a", "target": "b"}])
    wrong = encode(target_lang="de", source_lang="a whole text")
    assert "source_lang is 'a whole text', and not the code of a language" in str(wrong)
    plain = SequenceToSequence(task.tokenizer)
    with pytest.raises(ConfigError, match=r"^target_lang: this model is not told any language; leave it out"):
        generate(model, plain, ["a"], target_lang="de")


def test_one_language_needs_no_naming(make_model, tagged):
    model = make_model(vocab_size=len(tagged), languages={"de": len(tagged) - 3}, target_lang_in="decoder")
    task = SequenceToSequence.from_model(tagged, model.config)
    ((feature,), _) = separate(task.encode({"source": ["a"], "target": ["b"], "row": [0]}))
    assert tokens(task, feature["decoder_start"]) == "<s> <2de>" and feature["target_lang"] == "de"


def test_answers_of_many_languages_come_from_one_batch(make_task):
    """Each as if its language was forced for all, greedily and with beams."""
    model, task = make_task(tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.normal_(std=3.0)
    for beams in (1, 3):
        model.generation_config.num_beams = beams
        texts = ["a b c", "d e", "f", "g h a b"]
        both = [generate(model, task, texts, target_lang=code) for code in ("de", "fr")]
        assert both[0] != both[1]
        rows = {"source": texts * 2, "target_lang": ["de"] * 4 + ["fr"] * 4, "row": [*range(8)]}
        batch = task.collate(task.encode(rows))
        assert task.predict(model, batch, model.generation_config) == both[0] + both[1]
    model.generation_config.num_beams = 1
    inputs = task.tokenizer(texts, padding=True, return_tensors="pt")
    forced = model.generate(**inputs, forced_bos_token_id=model.config.languages["fr"], max_new_tokens=6)
    assert task.tokenizer.batch_decode(forced, skip_special_tokens=True) == generate(
        model, task, texts, target_lang="fr"
    )


def test_the_tokens_of_hypotheses_begin_behind_the_tag(make_task):
    """Each with its probability there."""
    model, task = make_task(tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.normal_(std=3.0)
    model.generation_config.num_beams = 2
    features, _ = separate(task.encode({"source": ["a b", "c"], "target_lang": ["de", "fr"], "row": [0, 1]}))
    batch = task.collate(features)
    wanted = Wanted(num_best=2, scores=True, token_probabilities=True)
    found = find_hypotheses(model, task, features, batch, model.generation_config, wanted)
    assert [row[0].text for row in found] == task.predict(model, batch, model.generation_config)
    best = found[1][0]
    assert best.tokens is not None and best.probabilities is not None and len(best.tokens) == len(best.probabilities)
    read = torch.tensor([[1, model.config.languages["fr"]]])
    with torch.no_grad():
        logits = model(batch["input_ids"][1:, :2], decoder_input_ids=read).logits[0, -1]
    first = task.tokenizer.convert_tokens_to_ids(best.tokens[0])
    assert best.probabilities[0] == pytest.approx(logits.softmax(-1)[first].item(), rel=1e-4)


def test_tags_in_a_text_are_text(make_config):
    """Of languages and sources, whatever kind of tokenizer is trained on texts that are full of them."""
    rows = [{"source": "a <2de> <bt>", "target": "b <2fr>x", "target_lang": "de"}] * 40
    for kind in ("word", "bpe", "unigram", "wordpiece", "word_punct", "character"):
        data = {"target_lang": {"column": "language"}, "source_tag": "<bt>"}
        tokenizer = prepare_tokenizer(make_config(tokenizer={"kind": kind, "vocab_size": 400}, data=data), rows, None)
        assert tokenizer is not None
        tags = tokenizer.convert_tokens_to_ids(["<2de>", "<bt>"])
        assert tags == [len(tokenizer) - 1, len(tokenizer) - 2] and tokenizer.convert_tokens_to_ids("<2fr>") in (
            None,
            3,
        )
        assert not {*tags} & {*tokenizer("a <2de> <bt><2de>")["input_ids"]}
        assert {*tags} <= {*tokenizer.all_special_ids}


def test_tokenizers_with_languages_mark_each_row():
    """As they would if the row's languages were set, and they are as they were before."""
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁a", -1.0), ("▁b", -1.0)]
    codes = [(code, 0.0) for code in ("en_XX", "fr_XX", "de_DE")]
    for tokenizer, starts in (
        (MBartTokenizer(vocab=[*pieces, *codes, ("<mask>", 0.0)]), ["fr_XX", "de_DE"]),
        (MBart50Tokenizer(vocab=pieces), ["</s> fr_XX", "</s> de_DE"]),
    ):
        model = make_other_model("mbart", len(tokenizer), pad_token_id=1, eos_token_id=2, decoder_start_token_id=2)
        before = tokenizer("a b")["input_ids"]
        task = SequenceToSequence.from_model(tokenizer, model.config)
        rows: Columns = {
            "source": ["a b", "b"],
            "target": ["b", "a b"],
            "source_lang": ["en_XX", "de_DE"],
            "target_lang": ["fr_XX", "de_DE"],
            "row": [0, 1],
        }
        features, _ = separate(task.encode(rows))
        assert tokenizer("a b")["input_ids"] == before
        batch = task.collate(features)
        for place, feature in enumerate(features):
            tokenizer.src_lang, tokenizer.tgt_lang = rows["source_lang"][place], rows["target_lang"][place]
            expected = tokenizer(rows["source"][place], text_target=rows["target"][place])
            assert feature["input_ids"] == expected["input_ids"]
            assert tokens(task, feature["decoder_start"]) == starts[place]
            labels = torch.tensor([expected["labels"]])
            read = model.prepare_decoder_input_ids_from_labels(labels)[0].tolist()
            assert (
                batch["decoder_input_ids"][place, : task.lengths(feature)[1]].tolist()
                == read[: task.lengths(feature)[1]]
            )
            assert tokens(task, feature["labels"]) == f"{'▁b' if place == 0 else '▁a ▁b'} </s>"
        assert batch["labels"].ne(IGNORED).sum(1).tolist() == [2, 3]
        both = task.predict(model, batch, model.generation_config)
        for place, (feature, answer) in enumerate(zip(features, both, strict=True)):
            assert task.predict(model, task.collate([feature]), model.generation_config) == [answer], place
        (bad,) = task.encode({"source": ["a"], "source_lang": ["xx"], "target_lang": ["fr_XX"], "row": [0]})
        assert "source_lang is 'xx', which the model does not know; choose from " in str(bad)


def test_names_that_resemble_a_wrong_one_come_first():
    names = [f"x{number}" for number in range(20)] + ["fra_Latn"]
    assert choose_from(names, "fra_Latin").startswith("; choose from fra_Latn, x0, ") and choose_from(names).endswith(
        "..."
    )


def write_rows(folder, count=600):
    """Words to be copied or reversed, as only their language says."""
    generator = random.Random(0)
    folder.mkdir()
    for split, rows in (("train", count), ("validation", 40)):
        with (folder / f"{split}.jsonl").open("w") as stream:
            for _ in range(rows):
                words, code = (
                    generator.choices("abcdefgh", k=generator.randint(2, 4)),
                    generator.choice(["copy", "back"]),
                )
                answer = words if code == "copy" else words[::-1]
                print(
                    json.dumps({"source": " ".join(words), "target": " ".join(answer), "language": code}), file=stream
                )
    return folder


def obedient_run(folder, where, steps=260):
    data: dict[str, Any] = {"path": str(write_rows(folder / "rows")), "options": {}, "test": None, "source_lang": "en"}
    data |= {"target_lang": {"column": "language"}, "target_lang_in": where}
    data |= {"max_source_length": 8, "max_target_length": 8}
    training: dict[str, Any] = {
        "max_steps": steps,
        "per_device_train_batch_size": 32,
        "learning_rate": 6e-3,
        "eval_strategy": "no",
    }
    model: dict[str, Any] = {
        **TINY,
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "ffn_dim": 64,
        "dropout": 0.0,
    }
    config = small_config(folder / "run", data=data, model=model, training=training | {"save_steps": steps})
    return train(config)


@pytest.fixture(scope="module")
def obedient(tmp_path_factory):
    """A finished run of a model whose decoder is told whether to copy or to reverse."""
    return obedient_run(tmp_path_factory.mktemp("obedient"), "decoder")


def assert_obeys(translate):
    texts = ["a b c", "d e", "h g a"]
    assert translate(texts, "copy") == texts
    assert translate(texts, "back") == [text[::-1] for text in texts]


def test_the_model_obeys_its_tag(obedient, command):
    """From the checkpoint alone: by the command, in Python, in plain transformers, in a pipeline."""
    assert obedient.scores["validation"]["exact_match"] > 0.8
    folder = obedient.output_dir
    model, task = load_trained(folder)
    assert model.generation_config.forced_bos_token_id is None
    assert_obeys(lambda texts, code: generate(model, task, texts, target_lang=code))
    done = command("generate", folder, "a b c", "--target-lang", "back", "--source-lang", "en")
    assert done.stdout == "c b a\n"
    done = command("generate", folder, "a b c")
    assert done.returncode == 2 and "target_lang is missing" in done.stderr and "choose from" in done.stderr
    auto = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def plain(texts, code):
        inputs = tokenizer(texts, padding=True, return_tensors="pt")
        ids = auto.generate(**inputs, forced_bos_token_id=auto.config.languages[code])
        return tokenizer.batch_decode(ids, skip_special_tokens=True)

    assert_obeys(plain)
    assert_obeys(partial(pipeline_of(folder), batch_size=1))
    assert_obeys(partial(pipeline_of(folder), batch_size=3))
    with pytest.raises(ValueError, match="tgt_lang is missing; choose from back, copy"):
        pipeline_of(folder)(["a"], None, batch_size=1)
    with pytest.raises(ValueError, match="tgt_lang is 'de', which the model does not know; choose from back, copy"):
        pipeline_of(folder)(["a"], "de", batch_size=1)


def pipeline_of(folder):
    translate = transformers.pipeline("translation", model=str(folder), trust_remote_code=True)

    def call(texts, code, batch_size):
        answers = translate(texts, src_lang="en", tgt_lang=code, batch_size=batch_size)
        return [answer["translation_text"] for answer in answers]

    return call


def test_a_trace_tells_the_language(obedient, command, tmp_path):
    done = command("trace", obedient.output_dir, "a b", "b a", "--target-lang", "back", "--output", tmp_path / "t.html")
    assert done.returncode == 0 and "sum of 3 step losses" in done.stdout and "itself       b a" in done.stdout


@pytest.mark.slow  # trains
def test_a_tag_in_front_of_the_source(tmp_path):
    run = obedient_run(tmp_path, "source")
    model, task = load_trained(run.output_dir)
    assert_obeys(lambda texts, code: generate(model, task, texts, target_lang=code))
    assert_obeys(partial(pipeline_of(run.output_dir), batch_size=3))


@pytest.mark.parametrize(
    "name",
    ["transformers", "ctranslate2", pytest.param("onnx", marks=pytest.mark.slow)],  # which traces for 10 s
)
def test_exports_keep_the_languages(obedient, tmp_path, monkeypatch, name):
    """What proves them equal has rows of both; and they obey, the stock form by its own config."""
    for library in EXPORTS[name].libraries:
        pytest.importorskip(library)
    monkeypatch.setattr(equivalence, "RESAMPLES", 50)
    folder = tmp_path / "run"
    shutil.copytree(obedient.output_dir, folder)
    target = export(folder, name, num_rows=16)
    loaded = load_trained(target) if name == "transformers" else load_engine(name, folder)
    assert_obeys(lambda texts, code: generate(*loaded, texts, target_lang=code))
    rows = [{"source": "a b c", "target": "c b a", "target_lang": "back"}]
    ours, theirs = (evaluate(*one, rows).numbers["loss"] for one in (load_trained(folder), loaded))
    assert theirs == pytest.approx(ours, rel=1e-4)


def test_the_card_says_how_to_name_a_language(obedient):
    card = (obedient.output_dir / "README.md").read_text()
    assert 'print(translate("' in card and 'tgt_lang="back"))' in card and "It translates into `back`, `copy`" in card
    assert 'model.generate(**inputs, forced_bos_token_id=model.config.languages["back"])' in card
