"""Proofs that the model and its training compute what they should, against other implementations."""

import math
import subprocess
import sys

import pytest
import sacrebleu
import torch
from safetensors.torch import load_file
from torch import nn

from pipeline.exporting.stock import to_stock
from pipeline.inference.metrics import bleu, chrf
from pipeline.models import transformer_layers
from pipeline.models.modeling_seq2seq import shift_right
from pipeline.models.transformer_layers import DecoderLayer, EncoderLayer, sinusoidal_positions
from pipeline.run import train

NORMS = pytest.mark.parametrize("pre_norm", [True, False])


def test_worked_cross_entropy_example():
    """Logits [2.0, 1.0, 0.1, 3.0, -1.0] with the fourth as target, worked out by hand."""
    logits = torch.tensor([2.0, 1.0, 0.1, 3.0, -1.0])
    exponentials = [math.exp(value) for value in logits.tolist()]
    by_hand = [value / sum(exponentials) for value in exponentials]
    torch.testing.assert_close(logits.softmax(-1), torch.tensor(by_hand))
    assert [round(value, 3) for value in by_hand] == [0.233, 0.086, 0.035, 0.634, 0.012]
    loss = nn.functional.cross_entropy(logits[None], torch.tensor([3])).item()
    assert round(loss, 3) == 0.455 == round(-math.log(by_hand[3]), 3)


def test_sinusoidal_positions_are_the_papers():
    positions = sinusoidal_positions(torch.tensor([0, 1, 7, 100_000]), 8)
    for row, position in enumerate((0, 1, 7, 100_000)):
        for i in range(4):
            angle = position / 10000 ** (2 * i / 8)
            # float32 holds an angle of 100,000 to about 0.004
            assert positions[row, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6 + 1e-7 * position)
            assert positions[row, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6 + 1e-7 * position)


def test_shift_right():
    labels = torch.tensor([[5, 6, 2], [7, 2, -100]])
    assert shift_right(labels, start_token_id=1, pad_token_id=0).tolist() == [[1, 5, 6], [1, 7, 2]]


@NORMS
def test_parallel_forward_is_the_loop(make_model, batch, pre_norm):
    """All positions at once under the causal mask = one forward pass for each growing prefix."""
    model = make_model(pre_norm=pre_norm)
    with torch.no_grad():
        parallel = model(**batch).logits
        prefix = shift_right(batch["labels"], 1, 0)
        for length in range(1, prefix.shape[1] + 1):
            step = model(batch["input_ids"], batch["attention_mask"], decoder_input_ids=prefix[:, :length]).logits
            torch.testing.assert_close(step[:, -1], parallel[:, length - 1], atol=1e-5, rtol=0)


def copy_attention(ours, theirs: nn.MultiheadAttention) -> None:
    theirs.in_proj_weight.data = torch.cat([ours.q_proj.weight, ours.k_proj.weight, ours.v_proj.weight]).data
    theirs.in_proj_bias.data = torch.cat([ours.q_proj.bias, ours.k_proj.bias, ours.v_proj.bias]).data
    theirs.out_proj.load_state_dict(ours.out_proj.state_dict())


def randomise(module: nn.Module) -> None:
    """Biases and norms too, which start at 0 and 1 and would hide a missing one."""
    torch.manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)


@NORMS
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_layers_are_torch_layers(make_model, pre_norm, activation):
    config = make_model(pre_norm=pre_norm, activation_function=activation, dropout=0.0).config
    config._attn_implementation = "eager"
    options = {"dropout": 0.0, "activation": activation, "batch_first": True, "norm_first": pre_norm}
    source, target = torch.randn(2, 6, 16), torch.randn(2, 4, 16)
    padding = torch.tensor([[False] * 6, [False] * 3 + [True] * 3])
    mask = torch.zeros(2, 1, 1, 6).masked_fill(padding[:, None, None], torch.finfo(torch.float32).min)
    causal = torch.full((4, 4), torch.finfo(torch.float32).min).triu(1)

    ours, theirs = EncoderLayer(config), nn.TransformerEncoderLayer(16, 4, 32, **options)
    randomise(ours)
    copy_attention(ours.self_attn, theirs.self_attn)
    pairs: list[tuple[nn.Module, nn.Module]] = [
        (ours.self_attn_residual.norm, theirs.norm1),
        (ours.feed_forward_residual.norm, theirs.norm2),
    ]
    pairs += [(ours.feed_forward.fc1, theirs.linear1), (ours.feed_forward.fc2, theirs.linear2)]
    for mine, other in pairs:
        other.load_state_dict(mine.state_dict())
    expected = theirs(source, src_key_padding_mask=padding)
    torch.testing.assert_close(ours(source, mask)[~padding], expected[~padding], atol=1e-5, rtol=1e-5)

    decoder, torchs = DecoderLayer(config, 0), nn.TransformerDecoderLayer(16, 4, 32, **options)
    assert isinstance(torchs.multihead_attn, nn.MultiheadAttention) and isinstance(torchs.norm3, nn.LayerNorm)
    randomise(decoder)
    copy_attention(decoder.self_attn, torchs.self_attn)
    copy_attention(decoder.cross_attn, torchs.multihead_attn)
    pairs = [(decoder.self_attn_residual.norm, torchs.norm1), (decoder.cross_attn_residual.norm, torchs.norm2)]
    pairs += [(decoder.feed_forward_residual.norm, torchs.norm3)]
    pairs += [(decoder.feed_forward.fc1, torchs.linear1), (decoder.feed_forward.fc2, torchs.linear2)]
    for mine, other in pairs:
        other.load_state_dict(mine.state_dict())
    expected = torchs(target, source, tgt_mask=causal, memory_key_padding_mask=padding)
    got = decoder(target, source, attention_mask=causal[None, None], source_attention_mask=mask)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pre_norm", [False, True], ids=["marian", "pegasus"])
def test_whole_model_is_a_stock_one(make_model, batch, pre_norm):
    model = make_model(pre_norm=pre_norm)
    randomise(model)
    stock = to_stock(model, positions=64)
    with torch.no_grad():
        ours = model(**batch)
        theirs = stock(**batch)
        torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours.loss, theirs.loss)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    for options in ({}, {"num_beams": 3}):
        options |= {"max_new_tokens": 8, "do_sample": False}
        assert model.generate(**inputs, **options).tolist() == stock.generate(**inputs, **options).tolist()


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 4}, {"do_sample": True, "top_k": 10, "temperature": 0.6}],
    ids=["greedy", "beam", "sample"],
)
def test_cache_changes_nothing(make_model, batch, options):
    model = make_model()
    randomise(model)
    outputs = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        ids = model.generate(batch["input_ids"], max_new_tokens=12, use_cache=use_cache, **options)
        outputs.append(ids.tolist())
    assert outputs[0] == outputs[1]


def test_cached_logits_are_full_logits(make_model, batch):
    model = make_model()
    target = shift_right(batch["labels"], 1, 0)
    with torch.no_grad():
        full = model(batch["input_ids"], decoder_input_ids=target).logits
        cache, encoded = None, None
        for position in range(target.shape[1]):
            outputs = model(
                batch["input_ids"],
                decoder_input_ids=target[:, position : position + 1],
                encoder_outputs=encoded,
                past_key_values=cache,
                use_cache=True,
            )
            cache, encoded = outputs.past_key_values, (outputs.encoder_last_hidden_state,)
            torch.testing.assert_close(outputs.logits[:, 0], full[:, position], atol=1e-5, rtol=0)


@NORMS
@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_padding_changes_nothing(make_model, batch, pre_norm, kernel):
    """The second pair unpadded = the second pair padded beside a longer one, with and without an explicit mask."""
    model = make_model(pre_norm=pre_norm)
    model.set_attn_implementation(kernel)
    alone = {"input_ids": batch["input_ids"][1:, :3], "labels": batch["labels"][1:, :2]}
    masked, unmasked = batch, {name: batch[name] for name in ("input_ids", "labels")}
    with torch.no_grad():
        expected = model(**alone).logits[0]
        for together in (masked, unmasked):
            torch.testing.assert_close(model(**together).logits[1, :2], expected, atol=1e-5, rtol=0)
    options = {"max_new_tokens": 6, "min_new_tokens": 6}
    expected_ids = model.generate(alone["input_ids"], **options)[0].tolist()
    assert model.generate(batch["input_ids"], **options)[1].tolist() == expected_ids


@NORMS
def test_sdpa_is_eager(make_model, batch, pre_norm, monkeypatch):
    results = {}
    for kernel, short_scores in (("eager", 0), ("sdpa", 0), ("sdpa", transformer_layers.SHORT_SCORES)):
        monkeypatch.setattr(transformer_layers, "SHORT_SCORES", short_scores)
        model = make_model(pre_norm=pre_norm).train()
        model.set_attn_implementation(kernel)
        loss = model(**batch).loss
        loss.backward()
        results[kernel, short_scores] = [loss.detach(), *(parameter.grad for parameter in model.parameters())]
    for eager, sdpa, short in zip(*results.values(), strict=True):
        torch.testing.assert_close(sdpa, eager, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(short, eager, atol=1e-6, rtol=1e-4)


def pack(batch: dict[str, torch.Tensor], length: int = 128) -> dict[str, torch.Tensor]:
    """Two pairs padded beside each other, as one sequence each side."""
    packed = {}
    for name, rows, ignored in (("input_ids", "source_rows", 0), ("labels", "target_rows", -100)):
        real = batch[name].ne(ignored)
        padding = (0, length - int(real.sum()))
        packed[name] = nn.functional.pad(batch[name][real], padding, value=ignored)[None]
        packed[rows] = nn.functional.pad(real.nonzero()[:, 0], padding, value=len(real))[None]
    return packed


@NORMS
@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_packed_is_padded(make_model, batch, pre_norm, kernel):
    """All rows in one sequence have the loss and the gradients of the rows beside each other."""
    results = []
    for inputs in (batch, pack(batch)):
        model = make_model(pre_norm=pre_norm, dropout=0.0).train()
        model.set_attn_implementation(kernel)
        outputs = model(**inputs)
        outputs.loss.backward()
        right = outputs.correct[inputs["labels"].ne(-100)]
        results.append([outputs.loss.detach(), right, *(parameter.grad for parameter in model.parameters())])
    for padded, packed in zip(*results, strict=True):
        torch.testing.assert_close(packed, padded, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("is_packed", [False, True])
def test_r_drop_without_dropout_is_the_plain_loss(make_model, batch, is_packed):
    """Two equal passes: loss, gradients and the count of right tokens are those of one, and nothing is apart."""
    results = []
    for r_drop in (0.0, 5.0):
        model = make_model(dropout=0.0, label_smoothing=0.1, r_drop=r_drop).train()
        outputs = model(**(pack(batch) if is_packed else batch))
        outputs.loss.backward()
        results.append([outputs.loss.detach(), outputs.correct, *(weight.grad for weight in model.parameters())])
    assert outputs.divergence.abs() < 1e-5
    for plain, twice in zip(*results, strict=True):
        torch.testing.assert_close(twice, plain, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("is_packed", [False, True])
def test_r_drop_is_the_papers(make_model, batch, is_packed):
    """Of the logits that the same model gives, by the same random numbers, for the batch and the batch once more."""
    inputs = pack(batch) if is_packed else batch
    labels = inputs["labels"]
    results = []
    for r_drop in (0.0, 5.0):
        model = make_model(dropout=0.3, label_smoothing=0.1, r_drop=r_drop).train()
        torch.manual_seed(1)
        if r_drop:
            outputs = model(**inputs)
            loss, apart = outputs.loss, outputs.divergence
        else:
            rows = {name: numbers for name, numbers in inputs.items() if name.endswith("_rows")}
            read = shift_right(labels, 1, 0, rows.get("target_rows"))
            doubled = {**inputs, "decoder_input_ids": read, "labels": None}
            doubled = {name: ids if ids is None or name in rows else ids.repeat(2, 1) for name, ids in doubled.items()}
            logits = model(**doubled).logits.flatten(0, 1)
            entropies = nn.functional.cross_entropy(logits, labels.repeat(2, 1).flatten(), label_smoothing=0.1)
            first, second = logits[labels.repeat(2, 1).flatten() != -100].log_softmax(-1).chunk(2)
            terms = [
                nn.functional.kl_div(*pair, reduction="sum", log_target=True)
                for pair in ((first, second), (second, first))
            ]
            apart = sum(terms) / 2
            loss = entropies + 5.0 / 2 * apart / len(first)
        loss.backward()
        results.append([loss.detach(), apart.detach(), *(weight.grad for weight in model.parameters())])
    assert apart > 0.01
    for by_hand, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, by_hand, atol=1e-6, rtol=1e-4)
    with torch.no_grad():  # evaluation makes one pass
        assert torch.equal(model.eval()(**batch).loss, make_model(dropout=0.3)(**batch).loss)


def test_loss_is_summed_and_divided_once(make_model, batch):
    """Two halves with the whole's number of targets add up to the whole."""
    model = make_model()
    num_items = batch["labels"].ne(-100).sum()
    whole = model(**batch).loss
    halves = [model(**{k: v[i : i + 1] for k, v in batch.items()}, num_items_in_batch=num_items).loss for i in (0, 1)]
    torch.testing.assert_close(sum(halves), whole)


def test_label_smoothing_is_torchs(make_model, batch):
    model = make_model(label_smoothing=0.1, dropout=0.0)
    logits, labels = model(**batch).logits.flatten(0, 1), batch["labels"].flatten()
    plain = nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(model(**batch).loss, plain)  # evaluation is never smoothed
    smoothed = nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(model.train()(**batch).loss, smoothed)
    assert not torch.isclose(plain, smoothed)


def test_two_hundred_steps_lose_as_marian_does(make_model):
    """Without logits, and by plain cross-entropy over all of them: the same losses, on the same rows in one order."""
    model = make_model(pre_norm=False, dropout=0.0, label_smoothing=0.1).train()
    marian = to_stock(model, positions=64).train()
    marian.config.dropout = 0.0
    optimizers = [torch.optim.AdamW(network.parameters(), lr=1e-3) for network in (model, marian)]
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(200):
        ids = torch.randint(4, 40, (8, 6), generator=generator)
        labels = ids.flip(1)
        theirs = marian(input_ids=ids, labels=labels).logits
        pair = [
            model(input_ids=ids, labels=labels).loss,
            nn.functional.cross_entropy(theirs.flatten(0, 1), labels.flatten(), label_smoothing=0.1),
        ]
        for optimizer, loss in zip(optimizers, pair, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append([loss.item() for loss in pair])
    ours, theirs = torch.tensor(losses).T
    assert ours[-20:].mean() < ours[:20].mean() - 0.3, "they learn"
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)


def test_a_fresh_process_gives_equal_logits(make_model, batch, tmp_path):
    """Loaded with only transformers, from the code that lies in the checkpoint."""
    model = make_model()
    model.save_pretrained(tmp_path / "model")
    torch.save(batch, tmp_path / "batch.pt")
    code = """
import sys, torch
from transformers import AutoModelForSeq2SeqLM
model = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1] + "/model", trust_remote_code=True).eval()
assert not any(name.startswith("pipeline") for name in sys.modules), "this package must not be needed"
with torch.no_grad():
    torch.save(model(**torch.load(sys.argv[1] + "/batch.pt")).logits, sys.argv[1] + "/logits.pt")
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=tmp_path, capture_output=True)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), model(**batch).logits.detach())


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("rows, accumulation", [(1, 8), pytest.param(4, 2, marks=pytest.mark.slow)])
def test_micro_batches_change_nothing(make_config, make_pairs, tmp_path, rows, accumulation):
    """Steps of the same eight rows, of 2 to 12 tokens, as 8 x 1, 4 x 2 and 1 x 8 end with equal parameters."""
    pairs = str(make_pairs(rows=8))

    def train_in(folder: str, rows: int, accumulation: int) -> dict[str, torch.Tensor]:
        training = {
            "output_dir": str(tmp_path / folder),
            "per_device_train_batch_size": rows,
            "gradient_accumulation_steps": accumulation,
            "optim": "sgd",  # Adam would blow up rounding where a gradient is nearly zero
            "learning_rate": 0.5,
            "max_grad_norm": 0.0,
            "eval_strategy": "no",
        }
        data: dict[str, object] = {"path": pairs, "options": {}, "validation": None, "test": None}
        return weights(train(make_config(training=training, data=data, model={"dropout": 0.0})).output_dir)

    reference = train_in("whole", 8, 1)
    for name, tensor in train_in("parts", rows, accumulation).items():
        torch.testing.assert_close(tensor, reference[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "streaming, workers",
    [
        pytest.param(False, (4, 0), marks=pytest.mark.slow),
        (True, (2, 4)),
        pytest.param(False, (0, 0), marks=pytest.mark.slow),
        pytest.param(True, (0, 0), marks=pytest.mark.slow),
    ],
)
def test_resume_is_the_uninterrupted_run(make_config, tmp_path, streaming, workers):
    """Bit by bit on the CPU, dropout included, with 16 steps over passes of 8, and other loader workers than before."""

    def config(folder: str, workers: int):
        training = {"max_steps": 16, "save_steps": 5, "eval_strategy": "no", "gradient_accumulation_steps": 2}
        training |= {"output_dir": str(tmp_path / folder), "dataloader_num_workers": workers}
        return make_config(data={"streaming": streaming, "shuffle_window": 24}, training=training)

    expected = weights(train(config("reference", 0)).output_dir)
    folder = train(config("resumed", workers[0])).output_dir
    for leftover in ("metrics.json", "model.safetensors", "checkpoint-16", "checkpoint-15", "checkpoint-10"):
        subprocess.run(["rm", "-r", str(folder / leftover)], check=True)
    assert not train(config("resumed", workers[1])).was_finished
    for name, tensor in weights(folder).items():
        assert torch.equal(tensor, expected[name]), name


def test_metrics_are_sacrebleus():
    predictions = ["the cat sat on a mat .", "a dog runs", "two men talk"]
    references = ["the cat sat on the mat .", "the dog runs fast", "two men talk"]
    assert bleu(predictions, references)["sacrebleu"] == sacrebleu.corpus_bleu(predictions, [references]).score
    assert chrf(predictions, references)["chrf"] == sacrebleu.corpus_chrf(predictions, [references]).score
    signature = bleu(predictions, references)["sacrebleu_signature"]
    assert isinstance(signature, str) and signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|")


@pytest.mark.slow
def test_resume_with_r_drop_and_word_dropout_is_the_uninterrupted_run(make_config, tmp_path):
    def run(folder: str, steps: int) -> dict[str, torch.Tensor]:
        training = {"output_dir": str(tmp_path / folder), "max_steps": steps, "r_drop": 5.0, "eval_strategy": "no"}
        augmentation = {"word_dropout": 0.2, "word_dropout_target": 0.2}
        training |= {"lr_scheduler_type": "constant"}  # which does not depend on where the training ends
        return weights(train(make_config(training=training, augmentation=augmentation)).output_dir)

    half = run("resumed", 4)
    resumed, whole = run("resumed", 8), run("whole", 8)
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name
    assert any(not torch.equal(half[name], tensor) for name, tensor in whole.items())
