"""The LSTM reads on from its state as if it had never stopped, past padding, in batches and in generation."""

from typing import Any
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from pipeline.models.configuration_lstm import LSTMConfig
from pipeline.models.modeling_lstm import LSTMForCausalLM, LSTMLayer, VariationalDropout

SIZES = {"vocab_size": 40, "embedding_size": 12, "hidden_size": 16, "num_hidden_layers": 2}
IDS = torch.tensor([[2, 5, 6, 7, 8, 9, 10], [2, 11, 12, 13, 14, 15, 16]])
PADDED = torch.tensor([[2, 5, 6, 7, 8], [0, 0, 2, 11, 12], [0, 0, 0, 0, 2]])  # on the left
MODES: dict[str, dict[str, float]] = {
    "greedy": {},
    "beams": {"num_beams": 3, "length_penalty": 0.5},
    "sampling": {"do_sample": True, "top_k": 10, "temperature": 0.6, "num_return_sequences": 2},
    "sampled beams": {"do_sample": True, "num_beams": 2},
}


def make(**changes) -> LSTMForCausalLM:
    torch.manual_seed(0)
    model = LSTMForCausalLM(LSTMConfig(**{**SIZES, **changes})).eval()
    with torch.no_grad():  # less alike than at the start of training, so that wrong answers are told from right ones
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


# The state


@pytest.mark.parametrize("tied", [False, True])
def test_chunks_with_a_carried_state_are_one_text(tied):
    model = make(tie_word_embeddings=tied)
    with torch.no_grad():
        whole = model(IDS)
        logits, state = [], None
        for chunk in IDS.split(3, dim=1):
            outputs = model(chunk, past_key_values=state)
            logits.append(outputs.logits)
            state = outputs.past_key_values
    torch.testing.assert_close(torch.cat(logits, 1), whole.logits, atol=1e-6, rtol=0)
    assert state is not None and state.get_seq_length() == 7
    for name in ("hidden", "cell"):
        for one, other in zip(getattr(state, name), getattr(whole.past_key_values, name), strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_a_given_state_stays_as_it_was():
    model = make()
    state = model(IDS[:, :3]).past_key_values
    before = [tensor.clone() for tensor in (*state.hidden, *state.cell)]
    model(IDS[:, 3:], past_key_values=state)
    model.generate(IDS[:, :4], past_key_values=state, max_new_tokens=3)
    assert all(torch.equal(*pair) for pair in zip(before, (*state.hidden, *state.cell), strict=True))
    assert state.get_seq_length() == 3


def test_a_detached_state_ends_the_gradient():
    model = make()
    state = model(IDS[:, :3]).past_key_values
    assert state.hidden[1].requires_grad and state.cell[0].requires_grad
    detached = state.detach()
    assert not any(tensor.requires_grad for tensor in (*detached.hidden, *detached.cell))
    assert torch.equal(detached.hidden[1], state.hidden[1]) and detached.get_seq_length() == 3


def test_is_torchs_own_lstm():
    model = make()
    reference = torch.nn.LSTM(12, 16, num_layers=2, batch_first=True)
    with torch.no_grad():
        for number, layer in enumerate(model.layers):
            for name, weight in layer.named_parameters():
                getattr(reference, name.replace("l0", f"l{number}")).copy_(weight)
        states, (hidden, cell) = reference(model.embed_tokens(IDS))
        outputs = model(IDS)
    torch.testing.assert_close(outputs.logits, model.lm_head(states), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.stack(outputs.past_key_values.hidden), hidden, atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.stack(outputs.past_key_values.cell), cell, atol=1e-6, rtol=0)


def test_forget_gates_start_open():
    torch.manual_seed(0)
    for layer in LSTMForCausalLM(LSTMConfig(**SIZES)).layers:
        assert layer.get_parameter("bias_ih_l0").tolist() == [0.0] * 16 + [1.0] * 16 + [0.0] * 32
        assert 0.2 < layer.get_parameter("weight_hh_l0").abs().max() <= 0.25


# Padding


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("chunked", [False, True])
def test_padding_changes_nothing(side, chunked):
    model = make()
    mask = PADDED.ne(0).long()
    ids = PADDED
    if side == "right":
        ids, mask = (torch.stack([row.roll(int(row.ne(0).sum())) for row in rows]) for rows in (ids, mask))
        assert ids[1].tolist() == [2, 11, 12, 0, 0]
    with torch.no_grad():
        before = model(IDS[[0, 1, 0], :4]).past_key_values if chunked else None
        mask_so_far = torch.cat([torch.ones(3, 4).long(), mask], 1) if chunked else mask
        outputs = model(ids, attention_mask=mask_so_far, past_key_values=before)
        for row in range(3):
            real = ids[row][mask[row].bool()][None]
            start = model(IDS[[0, 1, 0], :4][row : row + 1]).past_key_values if chunked else None
            alone = model(real, past_key_values=start)
            torch.testing.assert_close(outputs.logits[row][mask[row].bool()], alone.logits[0], atol=1e-6, rtol=0)
            for name in ("hidden", "cell"):
                states = zip(getattr(outputs.past_key_values, name), getattr(alone.past_key_values, name), strict=True)
                for one, other in states:
                    torch.testing.assert_close(one[row], other[0], atol=1e-6, rtol=0)


def test_a_row_of_padding_alone():
    with pytest.raises(ValueError, match="a row has no real token"):
        make()(IDS, attention_mask=torch.tensor([[1] * 7, [0] * 7]))


# Generation


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("prompts", [IDS, PADDED], ids=["whole", "padded"])
def test_generation_with_the_state_is_generation_without(mode, prompts):
    model, generated = make(), []
    for use_cache in (True, False):
        torch.manual_seed(1)
        options = {**MODES[mode], "use_cache": use_cache, "max_new_tokens": 12, "pad_token_id": 0}
        generated.append(model.generate(prompts, attention_mask=prompts.ne(0).long(), **options).tolist())
    assert generated[0] == generated[1]


def test_padded_prompts_go_on_as_they_would_alone():
    model = make()
    together = model.generate(PADDED, attention_mask=PADDED.ne(0).long(), max_new_tokens=8, eos_token_id=None)
    for row, ids in zip(together, PADDED, strict=True):
        alone = model.generate(ids[ids.ne(0)][None], max_new_tokens=8, eos_token_id=None)
        assert row[5:].tolist() == alone[0, -8:].tolist()


def test_generation_goes_on_from_a_state():
    model = make()
    state = model(IDS[:, :4]).past_key_values
    options = {"max_new_tokens": 6, "eos_token_id": None}
    assert model.generate(IDS, past_key_values=state, **options).tolist() == model.generate(IDS, **options).tolist()


@pytest.mark.parametrize("beams", [1, 3])
def test_every_token_is_read_once(beams):
    model, read = make(), []
    model.embed_tokens.register_forward_hook(lambda module, inputs, output: read.append(tuple(inputs[0].shape)))
    model.generate(IDS, max_new_tokens=20, eos_token_id=None, num_beams=beams)
    assert read == [(2 * beams, 7)] + [(2 * beams, 1)] * 19


def test_sampling_keeps_to_the_likeliest_tokens():
    model = make()
    torch.manual_seed(0)
    options = {"do_sample": True, "top_k": 10, "temperature": 0.6, "num_return_sequences": 20}
    ids = model.generate(IDS, max_new_tokens=10, eos_token_id=None, **options)
    with torch.no_grad():
        likeliest = model(ids[:, :-1]).logits.topk(10).indices  # (B, T, 10)
    assert likeliest.eq(ids[:, 1:, None]).any(-1)[:, 6:].all()
    assert len(ids.unique(dim=0)) > 20


def test_a_prompt_without_tokens():
    with pytest.raises(ValueError, match="input_ids has no token: give a prompt"):
        make()(IDS[:, :0])


# The loss


def test_labels_are_shifted_unless_they_are_already():
    model = make()
    labels = IDS.clone()
    labels[1, 4:] = -100
    outputs = model(IDS, labels=labels)
    shifted = torch.cat([labels[:, 1:], torch.full((2, 1), -100)], 1)
    expected = torch.nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(outputs.loss, expected)
    torch.testing.assert_close(model(IDS, shift_labels=shifted).loss, expected)
    torch.testing.assert_close(model(IDS, labels=IDS, shift_labels=shifted).loss, expected)  # which take precedence
    torch.testing.assert_close(model(IDS, shift_labels=shifted, num_items_in_batch=18).loss, expected * 9 / 18)
    assert torch.equal(model(IDS, shift_labels=shifted, return_dict=False)[0], outputs.loss)


def test_labels_are_smoothed_in_training_only():
    plain, smoothed = make(), make(label_smoothing=0.2)
    assert torch.equal(smoothed(IDS, labels=IDS).loss, plain(IDS, labels=IDS).loss)
    assert smoothed.train()(IDS, labels=IDS).loss > plain.train()(IDS, labels=IDS).loss


@pytest.mark.parametrize("field", ["dropout", "embedding_dropout", "word_dropout", "weight_dropout"])
def test_dropout_is_for_training(field):
    model = make(**{field: 0.5})
    assert torch.equal(model(IDS).logits, make()(IDS).logits)
    assert not torch.equal(model.train()(IDS).logits, make()(IDS).logits)


def test_variational_dropout_has_one_mask_for_all_tokens():
    torch.manual_seed(0)
    states = torch.full((3, 50, 40), 2.0)  # (B, T, H)
    dropout = VariationalDropout(0.25)
    assert dropout.eval()(states) is states
    factors = dropout.train()(states) / states
    assert torch.equal(factors, factors[:, :1].expand_as(factors))
    assert factors[0].ne(factors[1]).any()  # one for each row
    torch.testing.assert_close(factors.unique(), torch.tensor([0, 4 / 3]))
    assert 0.15 < factors.eq(0).float().mean() < 0.35


def test_where_variational_dropout_stands():
    model = make(variational_dropout=True, dropout=0.5, embedding_dropout=0.25)
    assert isinstance(model.dropout, VariationalDropout) and model.dropout.p == 0.5
    assert isinstance(model.embedding_dropout, VariationalDropout) and model.embedding_dropout.p == 0.25


def test_a_dropped_word_is_dropped_wherever_it_stands():
    model = make(word_dropout=0.5).train()
    read: list[torch.Tensor] = []
    model.layers[0].register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    ids = torch.arange(40).repeat(2, 3)  # (B, T) of which every word comes six times
    model(ids)
    places = read[0].view(6, 40, 12)  # every word, six times
    assert torch.equal(places, places[:1].expand_as(places))
    kept = places[0].any(-1)
    assert 8 < kept.sum() < 32
    torch.testing.assert_close(places[0][kept], model.embed_tokens.weight[kept] * 2)


def test_weight_dropout_is_on_the_weights_between_states():
    layer = LSTMLayer(12, 16, weight_dropout=0.25).train()
    weight_ih, dropped, *biases = layer._weights()
    assert torch.equal(weight_ih, layer.weight_ih_l0)
    assert all(map(torch.equal, biases, (layer.bias_ih_l0, layer.bias_hh_l0)))
    weight = layer.weight_hh_l0
    assert 0.15 < dropped.eq(0).float().mean() < 0.35
    torch.testing.assert_close(dropped[dropped.ne(0)], weight[dropped.ne(0)] * 4 / 3)
    assert not torch.equal(layer._weights()[1], dropped)  # another for each batch
    assert layer.eval()._weights()[1] is layer.weight_hh_l0


def test_a_layer_with_weight_dropout_is_torchs_lstm_with_the_dropped_weights(monkeypatch):
    layer = LSTMLayer(12, 16, weight_dropout=0.5).train()
    states, start = torch.rand(2, 7, 12), torch.zeros(2, 16)
    fused = Mock(side_effect=torch.lstm)
    monkeypatch.setattr(torch, "lstm", fused)
    torch.manual_seed(1)
    output, hidden, cell = layer(states, start, start)
    assert fused.call_count == 1  # of all tokens
    output.sum().backward()
    torch.manual_seed(1)
    dropped = layer._weights()[1].detach()
    reference = torch.nn.LSTM(12, 16, batch_first=True)
    reference.load_state_dict(layer.state_dict() | {"weight_hh_l0": dropped})
    expected, (last_hidden, last_cell) = reference(states)
    expected.sum().backward()
    torch.testing.assert_close([output, hidden, cell], [expected, last_hidden[0], last_cell[0]])
    grads: dict[str, Any] = {name: weight.grad for name, weight in reference.named_parameters()}
    grads["weight_hh_l0"] *= dropped.ne(0) * 2
    torch.testing.assert_close({name: weight.grad for name, weight in layer.named_parameters()}, grads)


def test_a_graph_drops_the_same():
    model = make(weight_dropout=0.5, word_dropout=0.25, variational_dropout=True, dropout=0.5).train()
    logits = []
    for each in (model, torch.compile(model, fullgraph=True, backend="eager")):
        torch.manual_seed(1)
        logits.append(each(IDS).logits)
    torch.testing.assert_close(*logits)


def test_bf16_autocast_with_a_state():
    model = make().train()
    with torch.autocast("cpu", torch.bfloat16):
        state = model(IDS).past_key_values.detach()
        loss = model(PADDED[:2], attention_mask=PADDED[:2].ne(0), labels=PADDED[:2], past_key_values=state).loss
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


# Saving


@pytest.mark.parametrize("tied", [False, True])
def test_saved_and_loaded(tied, tmp_path):
    model = make(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), LSTMConfig)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, LSTMForCausalLM) and not loaded.training
    assert (loaded.lm_head.weight is loaded.embed_tokens.weight) is tied
    assert loaded.layers[-1].hidden_size == (12 if tied else 16)
    torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, atol=0, rtol=0)


def test_the_code_beside_a_checkpoint_is_enough(tmp_path):
    model = make()
    model.save_pretrained(tmp_path)
    copied = get_class_from_dynamic_module("modeling_lstm.LSTMForCausalLM", str(tmp_path))
    assert copied is not LSTMForCausalLM and copied.__module__.startswith("transformers_modules")
    loaded = copied.from_pretrained(tmp_path)
    options = {"max_new_tokens": 5, "num_beams": 2}
    assert loaded.generate(IDS, **options).tolist() == model.generate(IDS, **options).tolist()


# Other ways in and out


def test_generation_from_vectors():
    model = make()
    for beams in ({}, {"num_beams": 3, "num_return_sequences": 2}):
        options: dict[str, Any] = {**beams, "max_new_tokens": 6, "eos_token_id": None}
        ids = model.generate(PADDED, attention_mask=PADDED.ne(0).long(), **options)
        vectors = model.embed_tokens(PADDED)
        generated = model.generate(inputs_embeds=vectors, attention_mask=PADDED.ne(0).long(), **options)
        assert generated.tolist() == ids[:, 5:].tolist()


def test_assisted_generation_is_refused():
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        make().generate(IDS[:1], assistant_model=make(), max_new_tokens=3)


def test_logits_of_some_tokens():
    model = make()
    whole = model(IDS, labels=IDS)
    assert torch.equal(model(IDS, logits_to_keep=2).logits, model(IDS).logits[:, -2:])
    assert torch.equal(model(IDS, logits_to_keep=torch.tensor([0, 3])).logits, model(IDS).logits[:, [0, 3]])
    kept = model(IDS, labels=IDS, logits_to_keep=1)
    assert kept.logits.shape == (2, 1, 40) and kept.loss == whole.loss


def test_hidden_states():
    model = make()
    states = model(IDS, output_hidden_states=True).hidden_states
    assert [state.shape for state in states] == [(2, 7, 12), (2, 7, 16), (2, 7, 16)]
    assert torch.equal(states[0], model.embed_tokens(IDS))
    assert torch.equal(model.lm_head(states[-1]), model(IDS).logits)
    with pytest.raises(ValueError, match="output_attentions: an LSTM has none"):
        model(IDS, output_attentions=True)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("size", [50, 30])
def test_resized(tied, size, tmp_path):
    model = make(tie_word_embeddings=tied)
    logits = model(IDS).logits
    model.resize_token_embeddings(size, mean_resizing=False)
    model.save_pretrained(tmp_path)
    for resized in (model, AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert resized.config.vocab_size == resized.lm_head.out_features == resized.embed_tokens.num_embeddings == size
        assert resized.lm_head.weight.shape[0] == resized.lm_head.bias.shape[0] == size
        assert (resized.lm_head.weight is resized.embed_tokens.weight) == tied
        torch.testing.assert_close(resized(IDS).logits[..., :30], logits[..., :30])


@pytest.mark.parametrize("name", ["embed_tokens.weight", "lm_head.weight"])
def test_a_tied_weight_is_found_under_each_of_its_names(name, tmp_path):
    model = make(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights[name] = weights.pop("embed_tokens.weight")
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[keys] for keys in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.lm_head.weight is loaded.embed_tokens.weight
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_graph_passes_over_padding_as_well(chunked):
    """Also between the tokens, and in rows without a token, which leave the state as it is."""
    model = make()
    mask = torch.tensor([[1, 0, 1, 1, 0, 1, 0], [0, 0, 1, 0, 0, 0, 1]])
    state = model(IDS[:, :4]).past_key_values if chunked else None
    graph = torch.compile(model, fullgraph=True, backend="eager")
    whole, traced = (each(IDS, attention_mask=mask, past_key_values=state) for each in (model, graph))
    torch.testing.assert_close(traced.logits, whole.logits)
    torch.testing.assert_close(traced.past_key_values.cell, whole.past_key_values.cell)
    torch.testing.assert_close(traced.past_key_values.hidden, whole.past_key_values.hidden)
    if state is not None:
        kept = graph(IDS, attention_mask=mask * 0, past_key_values=state).past_key_values
        assert all(torch.equal(*pair) for pair in zip(kept.cell + kept.hidden, state.cell + state.hidden, strict=True))
