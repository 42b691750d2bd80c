"""CTranslate2 in place of the model: the same tokens under the same generation config, or a refusal."""

import json
from collections import Counter
from itertools import chain

import pytest
import torch
from transformers import GenerationConfig

from pipeline.errors import ConfigError, DataError
from pipeline.inference.evaluation import evaluate
from pipeline.inference.generation import generate
from pipeline.inference.hypotheses import Wanted, find_hypotheses
from pipeline.tasks.sequence_to_sequence import SequenceToSequence

pytest.importorskip("ctranslate2")

from pipeline.exporting.ctranslate2 import write
from pipeline.inference.engines.ctranslate2 import CTranslate2Engine

PLAIN = {"max_new_tokens": 8, "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 1, "bos_token_id": 1}


@pytest.fixture
def model(make_model, task):
    """A random model that says something else to each source, and often ends."""
    model = make_model(vocab_size=len(task.tokenizer), d_model=32, tie_word_embeddings=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
        model.lm_head.weight[[2, 9]] = model.lm_head.weight[[9, 2]]
    model.generation_config = GenerationConfig(**PLAIN)
    return model


@pytest.fixture
def sources(task):
    torch.manual_seed(1)
    lengths, ids, places = (
        torch.randint(1, 9, (40, 1)),
        torch.randint(3, len(task.tokenizer), (40, 10)),
        torch.arange(10),
    )
    ids = ids.where(places < lengths, torch.where(places == lengths, 2, 0))
    return {"input_ids": ids, "attention_mask": ids.ne(0).long()}


@pytest.fixture
def engine(model, task, tmp_path):
    write(model, task, tmp_path, 32)
    return CTranslate2Engine.load(tmp_path, model.config, model.generation_config)


def answers(ids: torch.Tensor, generation: GenerationConfig) -> list[tuple[int, ...]]:
    """Cut rows behind their ends, as `generate` pads with 2 in beam search where the padding is 0."""
    ends = generation.eos_token_id if isinstance(generation.eos_token_id, list) else [generation.eos_token_id]
    rows = []
    for row in ids.tolist():
        length = next((place + 1 for place, number in enumerate(row) if number in ends), len(row))
        assert not {*row[length:]} - {0, *ends}
        rows.append(tuple(row[:length]))
    return rows


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_new_tokens": 1},
        {"max_new_tokens": None, "max_length": 5},
        {"min_new_tokens": 4},
        {"min_length": 6},
        {"no_repeat_ngram_size": 1, "suppress_tokens": [1]},
        {"no_repeat_ngram_size": 2, "suppress_tokens": [1]},
        {"repetition_penalty": 3.0, "suppress_tokens": [1]},
        {"suppress_tokens": [7, 8]},
        {"bad_words_ids": [[2], [8], [7, 7], [11, 11, 11]]},
        {"forced_bos_token_id": 7},
        {"forced_bos_token_id": 7, "min_new_tokens": 3, "max_new_tokens": 4},
        {"eos_token_id": [7, 11]},
        {"eos_token_id": None},
        {"num_beams": 4, "early_stopping": True},
        {"num_beams": 4, "early_stopping": "never"},
        {"num_beams": 3, "early_stopping": True, "length_penalty": 0.2},
        {"num_beams": 3, "early_stopping": "never", "length_penalty": 2.0},
        {"num_beams": 3, "early_stopping": "never", "length_penalty": -1.0},
        {"num_beams": 3, "early_stopping": "never", "length_penalty": 0.0},
        {"num_beams": 4, "early_stopping": "never", "num_return_sequences": 4},
        {
            "num_beams": 4,
            "early_stopping": True,
            "no_repeat_ngram_size": 3,
            "suppress_tokens": [1],
            "renormalize_logits": True,
        },
        {"num_beams": 4, "early_stopping": True, "min_new_tokens": 4, "renormalize_logits": True},
        {"num_beams": 4, "early_stopping": "never", "forced_bos_token_id": 7},
    ],
    ids=str,
)
def test_the_tokens_are_those_of_generate(model, engine, sources, settings):
    model.generation_config = engine.generation_config = generation = GenerationConfig(**PLAIN | settings)
    expected = answers(model.generate(**sources), generation)
    assert len({*expected}) > 4, "all sources have one answer"
    assert answers(engine.generate(**sources), generation) == expected


def test_most_tokens_are_those_of_generate_where_the_searches_end_otherwise(model, engine, sources):
    generation = GenerationConfig(**PLAIN, num_beams=4)
    ours, theirs = (
        answers(one.generate(**sources, generation_config=generation), generation) for one in (model, engine)
    )
    assert sum(one != other for one, other in zip(ours, theirs, strict=True)) <= 2


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"forced_eos_token_id": 0}, "forced_eos_token_id=0"),
        ({"begin_suppress_tokens": [3]}, r"begin_suppress_tokens=\[3\]"),
        ({"do_sample": True, "min_p": 0.1}, "min_p=0.1"),
        ({"do_sample": True, "typical_p": 0.5, "top_h": 0.5}, "top_h=0.5, typical_p=0.5"),
        ({"encoder_repetition_penalty": 1.5}, "encoder_repetition_penalty=1.5"),
        ({"max_time": 1.0}, "max_time=1.0"),
        ({"decoder_start_token_id": 3}, "decoder_start_token_id=3"),
        ({"num_beams": 2, "repetition_penalty": 1.5}, "repetition_penalty=1.5 beside num_beams=2"),
        ({"num_beams": 2, "max_time": 1.0}, "max_time=1.0; change it"),
        ({"num_beams": 2, "do_sample": True}, "do_sample=True beside num_beams=2"),
        ({"max_new_tokens": 33}, "33 new tokens are more than the 32 positions of the export; lower max_new_tokens"),
        ({"min_new_tokens": 9}, "minimum decoding length is greater than"),
    ],
    ids=str,
)
def test_what_it_cannot_do_is_refused_by_name(engine, sources, settings, named):
    generation = GenerationConfig(**PLAIN | settings)
    with pytest.raises(ConfigError, match=f"--engine ctranslate2: generation: .*{named}"):
        engine.generate(**sources, generation_config=generation)


def test_what_asks_for_nothing_is_not_refused(engine, sources):
    nothing = {
        "typical_p": 1.0,
        "epsilon_cutoff": 0.0,
        "encoder_repetition_penalty": 1.0,
        "remove_invalid_values": True,
    }
    generation = GenerationConfig(**PLAIN, **nothing, use_cache=False, do_sample=False, bad_words_ids=[])
    assert engine.generate(**sources, generation_config=generation).tolist() == engine.generate(**sources).tolist()


def test_keywords_change_the_generation_config(engine, sources):
    assert engine.generate(**sources, max_new_tokens=2).shape[1] == 3
    with pytest.raises(ConfigError, match="it has no output_scores=True"):
        engine.generate(**sources, output_scores=True)


@pytest.mark.parametrize("settings", [{"top_k": 3}, {"top_p": 0.9, "top_k": 0}, {"temperature": 0.5}], ids=str)
def test_sampling_draws_as_often_as_generate(model, engine, sources, settings):
    generation = GenerationConfig(**PLAIN | {"max_new_tokens": 1}, do_sample=True, **settings)
    source = {name: tensor[:1].expand(2000, -1) for name, tensor in sources.items()}
    torch.manual_seed(0)
    drawn = [one.generate(**source, generation_config=generation)[:, 1].tolist() for one in (model, engine)]
    ours, theirs = (Counter(tokens) for tokens in drawn)
    assert len(ours) > 1
    assert all(abs(ours[token] - theirs[token]) < 150 for token in ours | theirs)


def test_a_seed_gives_the_same_samples_again(engine, sources):
    def sample(seed: int, batches: int = 2) -> list[list[list[int]]]:
        torch.manual_seed(seed)
        return [engine.generate(**sources, do_sample=True, temperature=3.0).tolist() for _ in range(batches)]

    assert sample(3) == sample(3) != sample(4)
    first, second = sample(3)
    assert first != second


def test_texts_are_answered_in_order_and_empty_ones_by_empty_ones(model, engine, task):
    texts = ["a b c", "", "h", "  ", "g f e d c b a", "b", "d d", "f a", "e"]
    given = generate(engine, task, texts, batch_size=2)
    assert given == generate(model, task, texts, batch_size=6)
    assert given[1] == given[3] == "" and len({*given}) > 3


def test_scores_are_those_of_the_model_but_for_the_accuracy(model, engine, task):
    rows = [{"source": text, "target": text} for text in ("a b c", "h", "g f e d c b a")]
    ours, theirs = (evaluate(one, task, rows, metrics=["chrf"], batch_size=2) for one in (model, engine))
    assert ours.scores.keys() - theirs.scores.keys() == {"token_accuracy"}
    for name in ("loss", "perplexity", "chrf"):
        assert theirs.numbers[name] == pytest.approx(ours.numbers[name], rel=1e-5)
    assert theirs.predictions == ours.predictions


def test_a_target_without_an_end_is_scored_as_it_is(model, engine):
    batch = {
        "input_ids": torch.tensor([[5, 6, 2]]),
        "attention_mask": torch.ones(1, 3),
        "labels": torch.tensor([[7, 8]]),
    }
    with torch.no_grad():
        assert engine(**batch).losses.sum().item() == pytest.approx(2 * model(**batch).loss.item(), rel=1e-5)


@pytest.mark.parametrize("settings", [{}, {"num_beams": 4, "early_stopping": True, "length_penalty": 0.5}], ids=str)
def test_hypotheses_are_those_of_the_model(model, engine, task, settings):
    """With their scores and the probabilities of their tokens."""
    texts = ["a b c d", "h", "a c e", "g f e d c b a h"]
    features = task.encode({"source": texts, "row": [0, 1, 2, 3]})
    generation = GenerationConfig(**PLAIN | settings)
    wanted = Wanted(num_best=3 if settings else 1, scores=True, token_probabilities=True)
    ours, theirs = (
        find_hypotheses(one, task, features, task.collate(features), generation, wanted) for one in (model, engine)
    )
    for one, other in zip(chain(*ours), chain(*theirs), strict=True):
        assert (one.text, one.tokens) == (other.text, other.tokens)
        assert other.score == pytest.approx(one.score, abs=1e-4)
        assert other.probabilities == pytest.approx(one.probabilities, abs=1e-4)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Wanted(alignments=True), "alignments: a CTranslate2Engine gives no attentions; .* take --engine torch"),
        (Wanted(seed=1), "seed: CTranslate2Engine draws by random numbers of its own, .* or take --engine torch"),
        (Wanted(seed=1, num_best=2), "seed: CTranslate2Engine draws"),
        (Wanted(seed=1, mbr=2), "seed: CTranslate2Engine draws"),
        (Wanted(mbr=2), "it has no epsilon_cutoff=0.02.*; .* take --engine torch"),
        (Wanted(scores=True), "scores: those of beams are others beside suppress_tokens .* renormalize_logits=true"),
    ],
    ids=str,
)
def test_hypotheses_that_it_cannot_give(engine, task, wanted, message):
    features = task.encode({"source": ["a b c"], "row": [0]})
    settings = {"do_sample": True} if wanted.seed else {"num_beams": 2, "suppress_tokens": [7]}
    generation = GenerationConfig(**PLAIN, **settings)
    with pytest.raises(ConfigError, match=message):
        find_hypotheses(engine, task, features, task.collate(features), generation, wanted)


@pytest.mark.parametrize("name", ["model.bin", "shared_vocabulary.json", "config.json"])
def test_files_that_cannot_be_loaded_are_named(model, engine, tmp_path, name):
    (tmp_path / name).write_bytes(b"{")
    with pytest.raises(ConfigError, match=f"{tmp_path}: CTranslate2 cannot load it: .*export again"):
        CTranslate2Engine.load(tmp_path, model.config, None)


def test_a_longer_text_than_the_export_has_positions_for_is_named(engine, task):
    bounded = SequenceToSequence(task.tokenizer, engine.max_positions)
    with pytest.raises(DataError, match="text 2: source has 41 tokens, and the model has positions for 32"):
        generate(engine, bounded, ["a", "a " * 40])


def test_a_source_of_nothing_but_its_end_is_answered_by_nothing(engine):
    ids = torch.tensor([[5, 2], [2, 0]])
    answered, unanswered = engine.generate(ids, ids.ne(0).long()).tolist()
    assert answered[1] != 0 and unanswered == [1] + [0] * (len(answered) - 1)


def test_it_writes_nothing_on_standard_error(engine, task, capfd):
    generate(engine, task, ["a b"])
    assert capfd.readouterr().err == ""
    assert json.dumps(engine.tokens)


def test_what_export_makes_is_run_in_place_of_the_model(command, finished_folder):
    assert command("export", finished_folder, "--to", "ctranslate2").returncode == 0
    texts = ["1 2 3 4", "8 7 6 5"]
    ours, theirs = (command("generate", finished_folder, *texts, "--engine", one) for one in ("torch", "ctranslate2"))
    assert (theirs.returncode, theirs.stdout, theirs.stderr) == (0, ours.stdout, "")
    scores = json.loads(command("score", finished_folder, "--engine", "ctranslate2").stdout)
    expected = json.loads(command("score", finished_folder).stdout)
    assert scores == pytest.approx({name: expected[name] for name in scores}) and "loss" in scores
