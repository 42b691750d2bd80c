import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, GenerationConfig

from pipeline.models import modeling_seq2seq
from pipeline.models.configuration_seq2seq import Seq2SeqTransformerConfig
from pipeline.models.modeling_seq2seq import Seq2SeqTransformerForConditionalGeneration
from pipeline.models.transformer_layers import rows_block_mask


def test_auto_classes_know_the_model(make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), Seq2SeqTransformerConfig)
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert isinstance(model, Seq2SeqTransformerForConditionalGeneration)
    ids = torch.tensor([[5, 6, 2]])
    for options in ({"do_sample": True, "top_k": 10}, {"do_sample": True, "temperature": 0.6}, {}, {"num_beams": 4}):
        generated = model.generate(ids, max_new_tokens=5, **options)
        assert generated[0, 0] == 1 and generated.shape[1] <= 6


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_tied_or_separate(make_model, tmp_path, tied):
    make_model(tie_word_embeddings=tied).save_pretrained(tmp_path)
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    pointers = {model.encoder.embed_tokens.weight.data_ptr(), model.decoder.embed_tokens.weight.data_ptr()}
    pointers.add(model.lm_head.weight.data_ptr())
    assert len(pointers) == (1 if tied else 3)


def test_any_length(make_model):
    """No table of positions ends: a source and a target longer than anything else here."""
    model = make_model()
    with torch.no_grad():
        logits = model(torch.full((1, 3000), 7), labels=torch.full((1, 2500), 8)).logits
    assert logits.shape == (1, 2500, 40) and logits.isfinite().all()


def test_attentions_on_request(make_model, batch):
    model = make_model(encoder_layers=1, decoder_layers=3)
    model.set_attn_implementation("flex_attention")
    with pytest.raises(ValueError, match=r"set_attn_implementation\('eager'\)"):
        model(**batch, output_attentions=True)
    model.set_attn_implementation("sdpa")
    outputs = model(**batch, output_attentions=True, output_hidden_states=True)
    assert [weights.shape for weights in outputs.encoder_attentions] == [(2, 4, 6, 6)]
    assert [weights.shape for weights in outputs.decoder_attentions] == [(2, 4, 4, 4)] * 3
    assert [weights.shape for weights in outputs.cross_attentions] == [(2, 4, 4, 6)] * 3
    for weights in (*outputs.encoder_attentions, *outputs.cross_attentions):
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        assert weights[1, :, :, 3:].abs().max() == 0  # padding is never attended to
    for weights in outputs.decoder_attentions:
        assert weights.triu(1).abs().max() == 0  # nor the future
    assert len(outputs.decoder_hidden_states) == 4


def test_gradient_checkpointing_changes_nothing(make_model, batch):
    gradients = []
    for checkpointing in (False, True):
        model = make_model(dropout=0.0).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**batch).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_bf16_autocast(make_model, pre_norm):
    """All states of the layers have the type of the products, and loss and gradients are near those of float32.

    Of many tokens, as gradients that are summed in bf16 over few are near as well.
    """
    ids = torch.randint(4, 40, (2, 64, 20), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids[0], "labels": ids[1]}
    model = make_model(dropout=0.0, pre_norm=pre_norm).train()
    types = set()
    for layer in (*model.encoder.layers, *model.decoder.layers):
        layer.register_forward_hook(lambda module, inputs, output: types.add(output.dtype))
    results = []
    for is_enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_enabled):
            loss = model(**batch).loss
        loss.backward()
        results.append((loss.detach(), torch.cat([weight.grad.flatten() for weight in model.parameters()])))
        assert types == {torch.bfloat16 if is_enabled else torch.float32}
        types.clear()
    (plain, exact), (mixed, gradient) = results
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, plain, rtol=0.01, atol=0)
    assert (gradient - exact).norm() < 0.03 * exact.norm()


def test_static_cache(make_model, batch):
    model = make_model()
    options = {"max_new_tokens": 8, "min_new_tokens": 8}
    plain = model.generate(batch["input_ids"], **options)
    assert model.generate(batch["input_ids"], cache_implementation="static", **options).tolist() == plain.tolist()


@pytest.mark.slow  # compiles its kernel, for which the CPU needs a C++ compiler
def test_flex_attention_is_eager(make_model, batch):
    logits = {}
    for kernel in ("eager", "flex_attention"):
        model = make_model(d_model=64)
        model.set_attn_implementation(kernel)
        with torch.no_grad():  # on the CPU the kernel has no backward pass
            logits[kernel] = model(**batch).logits
    torch.testing.assert_close(logits["flex_attention"], logits["eager"], atol=1e-5, rtol=0)


@pytest.mark.slow  # as above
def test_packed_flex_attention_is_dense(make_model, monkeypatch):
    """What a GPU computes of rows in one sequence, in a whole model and when that is compiled too."""
    torch.compiler.reset()  # after the test above it compiles for open sizes, in C++ that does not build
    torch.manual_seed(0)
    rows = torch.arange(16).repeat_interleave(16)[None]
    ids = torch.randint(3, 40, rows.shape)
    inputs = {"input_ids": ids, "labels": ids.flip(1), "source_rows": rows, "target_rows": rows}
    model = make_model(d_model=64)
    with torch.no_grad():  # on the CPU the kernel has no backward pass
        dense = model(**inputs).logits
        monkeypatch.setattr(
            modeling_seq2seq,
            "rows_mask",
            lambda queries, keys, dtype, is_causal=False: rows_block_mask(queries[0], keys[0], is_causal),
        )
        torch.testing.assert_close(model(**inputs).logits, dense, atol=1e-5, rtol=0)
        # Traced, but not by Inductor, whose kernel for the CPU takes only queries that are not views.
        compiled = torch.compile(model, backend="aot_eager")
        torch.testing.assert_close(compiled(**inputs).logits, dense, atol=1e-5, rtol=0)


def test_a_target_is_needed(make_model, batch):
    with pytest.raises(ValueError, match="labels or decoder_input_ids"):
        make_model()(batch["input_ids"])


def test_saved_generation_config_is_explicit(make_model, tmp_path):
    model = make_model()
    model.generation_config = GenerationConfig(max_new_tokens=7, do_sample=True, top_k=10, pad_token_id=0)
    model.save_pretrained(tmp_path)
    assert AutoModelForSeq2SeqLM.from_pretrained(tmp_path).generation_config.top_k == 10


def test_vectors_in_place_of_ids(make_model, batch):
    model = make_model(tie_word_embeddings=False)
    decoder_input_ids = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    vectors = {
        "inputs_embeds": model.get_input_embeddings()(batch["input_ids"]),
        "decoder_inputs_embeds": model.decoder.embed_tokens(decoder_input_ids),
    }
    ids = model(**batch)
    given = model(attention_mask=batch["attention_mask"], labels=batch["labels"], **vectors)
    assert torch.equal(given.logits, ids.logits) and given.loss == ids.loss
    for both in ({"inputs_embeds": vectors["inputs_embeds"]}, vectors | {"decoder_input_ids": decoder_input_ids}):
        with pytest.raises(ValueError, match="not both"):
            model(**batch, **both)
    with pytest.raises(ValueError, match="token ids or vectors"):
        model(labels=batch["labels"])
