import threading

import pytest
import torch
from transformers import GenerationConfig

from pipeline.decoding import search as search_module
from pipeline.decoding import steps
from pipeline.decoding.search import PAIRS, beam_search, greedy_search, search_of
from tests import families

VOCABULARY = 12
SPECIAL = {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 1}


@pytest.fixture
def model(make_model):
    """One whose answers end at very different lengths, some of them never."""
    model = make_model(tie_word_embeddings=False, vocab_size=VOCABULARY)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model


@pytest.fixture
def sources() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, VOCABULARY, (1, int(length)), generator=generator) for length in torch.arange(24) % 9 + 1]


def together(model, sources, generation, **options) -> list[list[int]]:
    width = max(source.shape[1] for source in sources)
    batch = torch.cat([torch.nn.functional.pad(source, (0, width - source.shape[1])) for source in sources])
    ids = model.generate(batch, generation_config=generation, **options)
    ends = generation.eos_token_id
    return [strip(row, ends if isinstance(ends, list) else [ends]) for row in ids.tolist()]


def strip(ids: list[int], ends: list[int]) -> list[int]:
    """Without what fills up behind the end, which is `</s>` in some releases of transformers and padding in others."""
    return next((ids[: place + 1] for place, token in enumerate(ids) if token in ends), ids)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"min_new_tokens": 4},
        {"no_repeat_ngram_size": 2, "repetition_penalty": 1.3},
        {"num_beams": 3},
        {"num_beams": 5, "length_penalty": 0.0},
        {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True},
        {"num_beams": 4, "length_penalty": 1.5, "early_stopping": "never"},
        {"num_beams": 3, "early_stopping": "never", "length_penalty": -1.0},
        {"num_beams": 3, "no_repeat_ngram_size": 2, "min_new_tokens": 3},
        {"num_beams": 2, "eos_token_id": [2, 7, 9]},
        {"num_beams": 3, "max_new_tokens": 1},
    ],
    ids=str,
)
def test_it_is_what_generate_gives_each_alone(model, sources, options):
    generation = GenerationConfig(**{**SPECIAL, "max_new_tokens": 12, **options})
    search = search_of(model, generation)
    assert search is (beam_search if options.get("num_beams") else greedy_search)
    ours = together(model, sources, generation, custom_generate=search)
    alone = [together(model, [source], generation)[0] for source in sources]
    assert ours == alone
    assert options.get("max_new_tokens") == 1 or len({len(ids) for ids in alone}) > 1, "lengths differ"


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 2.0, "early_stopping": True},
        {"num_beams": 4, "num_return_sequences": 4, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3},
        {"num_beams": 4, "num_return_sequences": 3, "early_stopping": "never", "min_new_tokens": 3},
    ],
    ids=str,
)
def test_the_best_and_their_scores_are_what_generate_gives_each_alone(model, sources, options):
    asked = {"return_dict_in_generate": True, "output_scores": True}
    generation = GenerationConfig(**{**SPECIAL, "max_new_tokens": 9, **options, **asked})
    search = search_of(model, generation)
    assert search is beam_search
    batch = torch.nn.utils.rnn.pad_sequence([source[0] for source in sources[:10]], batch_first=True)
    ours = model.generate(batch, generation_config=generation, custom_generate=search)
    alone = [model.generate(source, generation_config=generation) for source in sources[:10]]
    expected = [ids for one in alone for ids in one.sequences.tolist()]
    assert [strip(ids, [2]) for ids in ours.sequences.tolist()] == [strip(ids, [2]) for ids in expected]
    torch.testing.assert_close(ours.sequences_scores, torch.cat([one.sequences_scores for one in alone]))


@pytest.mark.parametrize("family", PAIRS)
@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "num_return_sequences": 2}], ids=str)
def test_models_of_others_are_searched_as_by_generate(sources, family, options):
    model = families.make_model(family, VOCABULARY, **SPECIAL)
    asked = {"return_dict_in_generate": "num_beams" in options, "output_scores": True}
    generation = GenerationConfig(**{**SPECIAL, "eos_token_id": [2, 5, 9], "max_new_tokens": 9, **options, **asked})
    search = search_of(model, generation)
    assert search is (beam_search if options else greedy_search)
    batch = torch.nn.utils.rnn.pad_sequence([source[0] for source in sources[:9]], batch_first=True)
    inputs = {"inputs": batch, "attention_mask": batch.ne(0).long(), "generation_config": generation}
    ours, theirs = model.generate(**inputs, custom_generate=search), model.generate(**inputs)
    if options:
        torch.testing.assert_close(ours.sequences_scores, theirs.sequences_scores)
        ours, theirs = ours.sequences, theirs.sequences
    assert [strip(ids, [2, 5, 9]) for ids in ours.tolist()] == [strip(ids, [2, 5, 9]) for ids in theirs.tolist()]


@pytest.mark.parametrize("family", [None, "marian"])
@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3, "num_return_sequences": 2, "no_repeat_ngram_size": 2}], ids=str
)
def test_parts_on_threads_give_what_the_whole_gives(model, sources, family, options, monkeypatch):
    """More parts than threads; each has rows that end, and room in its cache for fewer tokens than there are."""
    model = families.make_model(family, VOCABULARY, **SPECIAL) if family else model
    generation = GenerationConfig(**SPECIAL, max_new_tokens=20, **options)
    batch = torch.nn.utils.rnn.pad_sequence([source[0] for source in sources], batch_first=True)
    inputs = {"inputs": batch, "attention_mask": batch.ne(0).long(), "generation_config": generation}
    theirs = model.generate(**inputs)
    num_threads = torch.get_num_threads()
    monkeypatch.setattr(search_module, "SEQUENCES", 16)
    monkeypatch.setattr(steps, "LEAST", 2)
    threads = set()
    forward = type(model).forward

    def watched(*args, **kwargs):
        threads.add(threading.get_ident())
        return forward(*args, **kwargs)

    monkeypatch.setattr(type(model), "forward", watched)
    torch.set_num_threads(2)
    try:
        ours = model.generate(**inputs, custom_generate=search_of(model, generation))
        assert torch.get_num_threads() == 2, "as it was"
    finally:
        torch.set_num_threads(num_threads)
    assert [strip(ids, [2]) for ids in ours.tolist()] == [strip(ids, [2]) for ids in theirs.tolist()]
    assert len(threads - {threading.get_ident()}) == 2


@pytest.mark.parametrize("beams", [1, 3])
def test_the_best_scores_are_found_by_chunks(beams):
    generator = torch.Generator().manual_seed(0)
    logs, scores = torch.randn(6, 1234, generator=generator), torch.randn(6 // beams, beams, generator=generator)
    logs[0, 1233] = logs[1, 0] = 9.0
    logs[2, 500:520] = -torch.inf
    expected = (logs.unflatten(0, (-1, beams)) + scores[..., None]).flatten(1).topk(10)
    for best, all_best in zip(search_module._topk(logs, scores, 10), expected, strict=True):
        assert torch.equal(best, all_best)
    logs[:, [7, 700]] = 10.0
    assert search_module._argmax(logs).tolist() == [7] * 6


@pytest.mark.parametrize("family", [None, "marian", "t5"])
def test_sources_encoded_in_parts_are_as_those_encoded_together(model, sources, family, monkeypatch):
    model = families.make_model(family, VOCABULARY, **SPECIAL) if family else model
    batch = torch.nn.utils.rnn.pad_sequence([source[0] for source in sources], batch_first=True)
    mask = batch.ne(0).long()
    monkeypatch.setattr(search_module, "ENCODED", 40)
    with torch.no_grad():
        states = search_module.encode(model, batch, mask)["encoder_outputs"].last_hidden_state
        expected = model.get_encoder()(input_ids=batch, attention_mask=mask).last_hidden_state
    assert states.shape == expected.shape
    torch.testing.assert_close(states[mask.bool()], expected[mask.bool()])


def test_parts_have_as_many_tokens_each(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    mask = (torch.arange(16) < torch.tensor([16, 8, 4, 4, 2, 2])[:, None]).long()
    assert search_module._cuts(mask, size=6, most=3) == [1]
    assert search_module._cuts(mask, size=6, most=2) == [1, 2]
    assert search_module._cuts(mask[:1], size=1, most=2) == []


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_beams_share_their_source(model, sources, kernel, monkeypatch):
    """The one copy gives what a copy for each beam gives, with `generate`'s own loop."""
    model.set_attn_implementation(kernel)
    for options in (
        {"num_beams": 3},
        {"num_beams": 3, "use_cache": False},
        {"num_return_sequences": 2, "num_beams": 2},
    ):
        generation = GenerationConfig(**SPECIAL, max_new_tokens=8, **options)
        shared = together(model, sources, generation)
        with monkeypatch.context() as patch:
            patch.setattr(type(model), "shares_source", False)
            assert together(model, sources, generation) == shared


def test_sampling_several_answers_to_a_source(model, sources):
    generation = GenerationConfig(**SPECIAL, max_new_tokens=5, do_sample=True, top_k=5, num_return_sequences=3)
    assert search_of(model, generation) is None
    torch.manual_seed(0)
    assert len(together(model, sources, generation)) == 3 * len(sources)


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True},
        {"return_dict_in_generate": True},
        {"num_beams": 2, "return_dict_in_generate": True, "output_logits": True},
        {"use_cache": False},
        {"encoder_no_repeat_ngram_size": 2},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0},
        {"prompt_lookup_num_tokens": 2},
    ],
    ids=str,
)
def test_what_else_there_is_goes_to_generate(model, options):
    assert search_of(model, GenerationConfig(**SPECIAL, **options)) is None


def test_what_is_unset_is_as_the_model_has_it(model):
    model.generation_config = GenerationConfig(**SPECIAL, do_sample=True)
    assert search_of(model, GenerationConfig(max_new_tokens=5)) is None
    assert search_of(model, GenerationConfig(max_new_tokens=5, do_sample=False)) is greedy_search
    model.generation_config = GenerationConfig(**SPECIAL, num_beams=3)
    assert search_of(model, GenerationConfig(max_new_tokens=5)) is beam_search
