"""Generation starts, and ends, where training does, for every family of models that a run can start from."""

import json
from types import SimpleNamespace

import pytest
import sentencepiece
import torch
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    M2M100Tokenizer,
    MBart50Tokenizer,
    MBartTokenizer,
    NllbTokenizer,
    PLBartTokenizer,
)

from pipeline.data_config import DataConfig
from pipeline.errors import ConfigError
from pipeline.run import train
from pipeline.setup.generation_setup import changed_generation, generation_config
from pipeline.setup.tokenizer_setup import _set_languages
from pipeline.tasks.sequence_to_sequence import SequenceToSequence
from tests.families import BART, FAMILIES, make_model
from tokenizer.training import train as train_tokenizer


@pytest.fixture(scope="module")
def words():
    return train_tokenizer([f"a b {number}" for number in range(300)] * 2, "word", 320, max_length=64)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A small SentencePiece model and its vocabulary."""
    folder = tmp_path_factory.mktemp("pieces")
    texts = iter([" ".join("abcdefgh"[: 2 + number % 7]) for number in range(100)])
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=texts, model_prefix=str(folder / "spm"), vocab_size=20, hard_vocab_limit=False, minloglevel=2
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    names = [model.id_to_piece(number) for number in range(model.get_piece_size())]
    names = ["<s>", "<pad>", "</s>", "<unk>", *(name for name in names if name not in ("<s>", "</s>", "<unk>"))]
    (folder / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    return folder


def asked(**generation):
    """What `generation_config` reads of a config."""
    data = DataConfig(path="x", max_target_length=12, source_lang="xx", target_lang="yy")
    return SimpleNamespace(generation=generation, model={"from": "x"}, data=data, task="sequence_to_sequence")


def assert_training_continues_what_is_generated(model, tokenizer):
    """Taken as targets, the tokens that a model generates are the ones it finds most probable in training."""
    task = SequenceToSequence.from_model(tokenizer, model.config)
    config = generation_config(asked(), model, task)  # type: ignore[arg-type]
    source = task.encode({"source": ["a b"], "row": [0]})
    batch = task.collate(source)  # type: ignore[arg-type]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    model.generation_config = config  # as in a run: `generate` fills in from there what is None here
    config.update(max_new_tokens=7, forced_eos_token_id=None, bad_words_ids=[[config.eos_token_id]])
    ids = model.generate(**inputs, generation_config=config)[0].tolist()
    start, tokens = ids[0], ids[1:]
    assert start == config.decoder_start_token_id and len(tokens) == 7
    prefix = [] if config.forced_bos_token_id is None else [config.forced_bos_token_id]
    ends = tokenizer(text_target="")["input_ids"][len(prefix) :]
    labels = torch.tensor([[*tokens, *ends]])
    logits = model(**inputs, labels=labels).logits[0]
    logits[:, config.eos_token_id] = -torch.inf
    assert logits.argmax(-1)[len(prefix) : 7].tolist() == tokens[len(prefix) :]
    assert tokens[: len(prefix)] == prefix


@pytest.mark.parametrize("family", FAMILIES)
def test_training_goes_on_from_the_start_of_generation(words, family):
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    model = make_model(family, len(words), **ids)
    model.generation_config = GenerationConfig(**{**ids, "decoder_start_token_id": 7, "forced_bos_token_id": 9})
    assert_training_continues_what_is_generated(model, words)


def make_multilingual(name: str, pieces):
    spm, vocab = str(pieces / "spm.model"), str(pieces / "vocab.json")
    names = [*json.loads((pieces / "vocab.json").read_text())]
    scores = [(name, -1.0) for name in names]
    if name == "m2m_100":
        return M2M100Tokenizer(vocab, spm), "en", "fr"
    if name == "plbart":
        return PLBartTokenizer(spm, language_codes="base"), "java", "en_XX"
    if name == "nllb":
        return NllbTokenizer(), "eng_Latn", "fra_Latn"
    if name == "mbart50":
        return MBart50Tokenizer(vocab=scores), "en_XX", "fr_XX"
    return MBartTokenizer(vocab=[*scores, ("en_XX", 0.0), ("fr_XX", 0.0), ("<mask>", 0.0)]), "en_XX", "fr_XX"


@pytest.mark.parametrize(
    "name, family",
    [("mbart", "mbart"), ("mbart50", "mbart"), ("plbart", "plbart"), ("m2m_100", "m2m_100"), ("nllb", "m2m_100")],
)
def test_the_language_is_where_training_has_it(pieces, tmp_path, name, family):
    """At the end of the labels or in front of them, and in the tokenizer that is saved."""
    tokenizer, source, target = make_multilingual(name, pieces)
    config = asked()
    with pytest.raises(ConfigError, match=r"data.source_lang: the tokenizer knows no 'xx'; choose from .+, .+"):
        _set_languages(config, tokenizer)  # type: ignore[arg-type]
    config.data = DataConfig(path="x")
    with pytest.raises(ConfigError, match=r"data.source_lang and data.target_lang: needed, as this tokenizer marks"):
        _set_languages(config, tokenizer)  # type: ignore[arg-type]
    config.data = DataConfig(path="x", source_lang=source, target_lang=target)
    _set_languages(config, tokenizer)  # type: ignore[arg-type]
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    for argument in ("text", "text_target"):
        assert again(**{argument: "a b"})["input_ids"] == tokenizer(**{argument: "a b"})["input_ids"]
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": 0, "eos_token_id": tokenizer.eos_token_id}
    model = make_model(family, len(tokenizer) + 200, **ids, decoder_start_token_id=tokenizer.eos_token_id)
    assert_training_continues_what_is_generated(model, again)
    task = SequenceToSequence.from_model(again, model.config)
    generation = generation_config(asked(), model, task)  # type: ignore[arg-type]
    code = again(text_target="")["input_ids"]
    assert {generation.decoder_start_token_id, generation.forced_bos_token_id} & {*code} - {tokenizer.eos_token_id}


def test_a_model_whose_decoder_does_not_read_the_labels_is_refused(words):
    """FSMT takes the source in their place."""
    sizes = {**BART, "langs": ["en", "fr"], "src_vocab_size": 320, "tgt_vocab_size": 320}
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("fsmt", **sizes))
    with pytest.raises(ConfigError, match=r"model.from: FSMTForConditionalGeneration cannot be trained on pairs here"):
        generation_config(asked(), model, SequenceToSequence(words))  # type: ignore[arg-type]


IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
PUBLISHED = {
    "num_beams": 4,
    "length_penalty": 2.0,
    "early_stopping": True,
    "no_repeat_ngram_size": 3,
    "max_length": 142,
}
PUBLISHED |= {"min_length": 5, "temperature": 0.9}  # the last has no effect there, and transformers does not store it


def test_a_published_setting_that_cannot_work_is_refused(words):
    """Unless the config replaces it."""
    model, task = make_model("bart", len(words), **IDS), SequenceToSequence(words)
    model.generation_config = GenerationConfig(**IDS)
    model.generation_config.num_beams = -3
    with pytest.raises(ConfigError, match=r"^model.from: its generation_config.json: generation.num_beams: .*-3"):
        generation_config(asked(), model, task)  # type: ignore[arg-type]
    assert generation_config(asked(num_beams=2), model, task).num_beams == 2  # type: ignore[arg-type]


def test_settings_of_a_published_model_stay(words):
    """But those that others make useless; and what is meant for beams does not reach evaluations without."""
    model, task = make_model("bart", len(words), **IDS), SequenceToSequence(words)
    model.generation_config = GenerationConfig(**PUBLISHED, forced_bos_token_id=0, forced_eos_token_id=2, **IDS)
    full = generation_config(asked(), model, task)  # type: ignore[arg-type]
    assert (full.num_beams, full.length_penalty, full.early_stopping, full.min_length) == (4, 2.0, True, 5)
    assert (full.max_new_tokens, full.max_length, full.temperature) == (12, None, None)
    assert (full.forced_bos_token_id, full.forced_eos_token_id) == (None, 2)  # targets begin with no <s> here
    single = changed_generation(full, {"num_beams": 1}, "x")
    assert (single.num_beams, single.length_penalty, single.early_stopping) == (1, None, None)
    assert (single.no_repeat_ngram_size, single.max_new_tokens, single.min_length) == (3, 12, 5)
    assert (full.num_beams, changed_generation(full, {"num_beams": 2}, "x").length_penalty) == (4, 2.0)
    greedy = generation_config(asked(num_beams=1, min_new_tokens=2), model, task)  # type: ignore[arg-type]
    assert (greedy.early_stopping, greedy.min_length, greedy.min_new_tokens) == (None, None, 2)


@pytest.mark.parametrize(
    "given, message",
    [
        (
            {"decoder_start_token_id": 5},
            r"generation.decoder_start_token_id: 5 is given, where training has 2 \('</s>'\)",
        ),
        ({"forced_bos_token_id": 5}, "generation.forced_bos_token_id: 5 is given, where training has nothing; leave"),
        ({"forced_eos_token_id": 5}, "generation.forced_eos_token_id: 5 is given, where training has nothing; leave"),
        ({"pad_token_id": 5}, r"generation.pad_token_id: 5 is given, where training has 0 \('<pad>'\)"),
        ({"eos_token_id": 300}, "generation.eos_token_id: targets are encoded as .*, without an end token"),
        (
            {"max_length": 6, "max_new_tokens": 6},
            "generation.max_length and generation.max_new_tokens: the second would win, so give only one",
        ),
        (
            {"min_length": 6, "min_new_tokens": 6},
            "generation.min_length and generation.min_new_tokens: the second would win, so give only one",
        ),
        ({"min_new_tokens": 13}, "generation.min_new_tokens: 13 is more than generation.max_new_tokens, which is 12"),
        ({"max_new_tokens": 65}, "generation.max_new_tokens: 65 is more than the 64 positions of the model's decoder"),
        ({"length_penalty": 2.0}, "^generation: [^\n]*length_penalty[^\n]*$"),
    ],
)
def test_what_training_contradicts_is_refused(words, given, message):
    model = make_model("bart", len(words), **IDS)
    with pytest.raises(ConfigError, match=message):
        generation_config(asked(**given), model, SequenceToSequence(words, (64, 64)))  # type: ignore[arg-type]


def test_an_end_token_within_the_targets_is_refused(words):
    model, given = make_model("bart", len(words), **IDS), asked(eos_token_id=words.convert_tokens_to_ids("1"))
    with pytest.raises(
        ConfigError, match=r"generation.eos_token_id: .* an end token comes before the end.* leave it out"
    ):
        generation_config(given, model, SequenceToSequence(words, (64, 64)))  # type: ignore[arg-type]


def test_a_maximum_length_is_obeyed(make_config, make_model, words):
    """It counts the start token."""
    config, model = make_config().model_copy(update={"generation": {"max_length": 6}}), make_model(vocab_size=320)
    model.generation_config = generation_config(config, model, SequenceToSequence(words))
    assert model.generation_config.max_new_tokens is None
    assert model.generate(torch.tensor([[5, 6, 2]]), bad_words_ids=[[2]]).shape == (1, 6)


def test_a_change_wins_over_what_is_stored():
    stored = GenerationConfig(max_new_tokens=12, do_sample=True, top_k=5)
    changed = changed_generation(stored, {"max_length": 6, "do_sample": False}, "--set")
    assert (changed.max_length, changed.max_new_tokens, changed.top_k) == (6, None, None)
    with pytest.raises(ConfigError, match="--set: "):
        changed_generation(GenerationConfig(), {"top_k": 6}, "--set")


@pytest.mark.slow  # trains
@pytest.mark.parametrize("name", ["mbart", "mbart50"])
def test_what_was_learned_is_generated(make_config, pieces, tmp_path, name):
    """With a language at the end of the labels, and in front of them."""
    tokenizer, source, target = make_multilingual(name, pieces)
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
    torch.manual_seed(0)
    sizes = {**BART, "d_model": 32, "dropout": 0.0}
    config = AutoConfig.for_model("mbart", vocab_size=len(tokenizer), **sizes, **ids)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    pairs = [
        {"source": " ".join("abcdefgh"[i:j]), "target": " ".join("abcdefgh"[i:j][::-1])}
        for i in range(4)
        for j in range(5, 9)
    ]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    data: dict[str, object] = {
        "path": str(tmp_path),
        "options": {},
        "test": None,
        "max_source_length": 60,
        "max_target_length": 60,
    }
    training: dict[str, object] = {"max_steps": 250, "per_device_train_batch_size": 16, "learning_rate": 4e-3}
    training |= {"eval_strategy": "no", "save_steps": 250}
    run = make_config(
        data={**data, "source_lang": source, "target_lang": target},
        training=training,
        generation={"max_new_tokens": 60},
    )
    result = train(run.model_copy(update={"model": {"from": str(tmp_path / "model")}}))
    assert result.scores["validation"]["exact_match"] == result.scores["validation"]["token_accuracy"] == 1
