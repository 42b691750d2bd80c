import subprocess
import sys

import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModel

from pipeline.models.configuration_forecaster import TransformerForecasterConfig
from pipeline.models.modeling_forecaster import TransformerForecaster

SIZES = {"d_model": 16, "encoder_layers": 2, "attention_heads": 4, "ffn_dim": 32}
WINDOW = {"context_length": 20, "prediction_length": 5, "patch_length": 8, "patch_stride": 4}
PLAIN = {"patch_length": 1, "patch_stride": 1, "instance_norm": False, "head": "last", "prediction_length": 1}
SERIES = {"series": ["HUFL", "OT", "HULL"], "means": [7.0, 13.0, -2.0], "stds": [5.0, 8.0, 0.5]}


def make(**changes) -> TransformerForecaster:
    torch.manual_seed(0)
    return TransformerForecaster(TransformerForecasterConfig(**{**SIZES, **WINDOW, **SERIES, **changes})).eval()


def make_batch(model: TransformerForecaster, rows: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Past (B, L, C) and future (B, H, C), spread as the config says."""
    generator, config = torch.Generator().manual_seed(1), model.config
    assert config.series is not None
    steps = config.context_length + config.prediction_length
    values = torch.randn(rows, steps, len(config.series), generator=generator)
    values = values * torch.tensor(config.stds) + torch.tensor(config.means)
    return values[:, : config.context_length], values[:, config.context_length :]


def forecast(model: TransformerForecaster, past: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(past_values=past).prediction_outputs


def standardised(model: TransformerForecaster, values: torch.Tensor) -> torch.Tensor:
    return (values - torch.tensor(model.config.means)) / torch.tensor(model.config.stds)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"head": "last"},
        {"pre_norm": False},
        {"patch_stride": 8},
        {"linear_forecast": True},
        {"level": "last"},
        PLAIN,
    ],
)
def test_shapes(changes):
    model = make(**changes)
    past, future = make_batch(model)
    outputs = model(past, future)
    assert outputs.prediction_outputs.shape == outputs.losses.shape == future.shape
    assert outputs.loss.shape == () and outputs.loss.isfinite()
    assert model(past).loss is None and model(past).losses is None
    loss, predictions, losses = model(past, future, return_dict=False)
    assert loss == outputs.loss and torch.equal(predictions, outputs.prediction_outputs) and len(losses) == len(past)


def test_linear_forecast_is_averaged_and_learns_alone():
    """The mean of both forecasts is what counts; in training each has its own error, so its own gradient."""
    model = make(linear_forecast=True)
    past, future = make_batch(model)
    target = standardised(model, future)
    window = standardised(model, past).transpose(1, 2)  # (B, C, L)
    assert model.linear is not None
    centre = window.mean(-1, keepdim=True)
    spread = (window.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    linear = (model.linear((window - centre) / spread) * spread + centre).transpose(1, 2)
    encoder = make(linear_forecast=False)
    encoder.load_state_dict({name: value for name, value in model.state_dict().items() if "linear." not in name})
    alone = standardised(encoder, forecast(encoder, past))
    torch.testing.assert_close(standardised(model, forecast(model, past)), (alone + linear) / 2)
    torch.testing.assert_close(model(past, future).loss, ((alone + linear) / 2 - target).square().mean())
    errors = [(output - target).square().mean() for output in (alone, linear)]
    for module in model.modules():
        if hasattr(module, "p"):
            module.p = 0.0
    loss = model.train()(past, future).loss
    torch.testing.assert_close(loss, (errors[0] + errors[1]) / 2)
    loss.backward()
    (expected,) = torch.autograd.grad(errors[1] / 2, [model.linear.weight])
    torch.testing.assert_close(model.linear.weight.grad, expected)


def test_patches_of_the_paper():
    """PatchTST/42: 42 patches of 16 steps, of which the last ends in 8 repetitions of the last value."""
    model = make(context_length=336, prediction_length=96, patch_length=16, patch_stride=8)
    seen = []
    model.patch_embedding.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    past, _ = make_batch(model, rows=1)
    forecast(model, past)
    (patches,) = seen
    assert patches.shape == (3, 42, 16) and model.head.in_features == 42 * model.config.d_model
    window = standardised(model, past)[0].T  # (C, L)
    window = functional.layer_norm(window, window.shape[-1:])
    torch.testing.assert_close(patches[:, 5], window[:, 40:56], rtol=1e-3, atol=1e-4)
    end = torch.cat([window[:, 328:], window[:, -1:].expand(-1, 8)], 1)
    torch.testing.assert_close(patches[:, 41], end, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("length, stride, context, patches", [(1, 1, 6, 6), (4, 4, 8, 2), (4, 4, 10, 3), (4, 3, 10, 4)])
def test_every_step_is_in_a_patch(length, stride, context, patches):
    model = make(context_length=context, patch_length=length, patch_stride=stride)
    assert model.config.num_patches == patches
    past, _ = make_batch(model, rows=1)
    past.requires_grad_()
    model(past).prediction_outputs.sum().backward()
    assert past.grad is not None and past.grad.abs().min() > 0


def test_instance_norm_carries_level_and_scale_over():
    model = make()
    past, _ = make_batch(model)
    expected = forecast(model, past)
    shift, scale = torch.tensor([100.0, -30.0, 2.0]), torch.tensor([3.0, 0.5, 10.0])
    torch.testing.assert_close(forecast(model, past + shift), expected + shift, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(forecast(model, past * scale), expected * scale, rtol=1e-3, atol=1e-3)
    plain = make(instance_norm=False)
    moved = forecast(plain, past + shift) - forecast(plain, past) - shift
    assert moved.abs().min(dim=0).values.max() > 0.1


def change_weights(model: TransformerForecaster) -> TransformerForecaster:
    """Give all weights values other than those of the start."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


@pytest.mark.parametrize("instance_norm", [True, False])
@pytest.mark.parametrize("level", ["last", "mean", "none"])
def test_the_level_is_taken_out_and_put_back(level, instance_norm):
    """A window that is moved has a forecast that is moved as far; without a level it has another one."""
    model = change_weights(make(level=level, instance_norm=instance_norm, linear_forecast=True))
    past, _ = make_batch(model)
    shift = torch.tensor([100.0, -30.0, 2.0])
    moved = (forecast(model, past + shift) - forecast(model, past) - shift).abs()
    if level == "none":
        assert moved.min(dim=0).values.max() > 0.1
    else:
        torch.testing.assert_close(moved, torch.zeros_like(moved), rtol=0, atol=1e-3)


@pytest.mark.parametrize("linear_forecast", [True, False])
def test_the_last_value_is_repeated_until_something_is_learned(linear_forecast):
    model = make(level="last", linear_forecast=linear_forecast)
    past, future = make_batch(model)
    past = past.double() + 1e8  # which float32 would round
    repeated = past[:, -1:].expand(-1, 5, -1)
    assert torch.equal(forecast(model, past), repeated)
    model.train()(past, future.double() + 1e8).loss.backward()
    assert model.head.weight.grad is not None and model.head.weight.grad.abs().max() > 0
    changed = change_weights(model.eval())
    assert (forecast(changed, past) - repeated).abs().min(dim=0).values.max() > 0.01
    changed.forget_change()
    assert torch.equal(forecast(changed, past), repeated)


def test_the_change_from_the_last_value_is_in_deviations_of_the_window():
    model = change_weights(make(level="last"))
    past, _ = make_batch(model)
    change = forecast(model, past) - past[:, -1:]
    wider = past[:, -1:] + (past - past[:, -1:]) * 3
    torch.testing.assert_close(forecast(model, wider) - past[:, -1:], change * 3, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("level", ["last", "mean"])
def test_a_constant_window_has_a_forecast(level):
    model = make(level=level)
    past = torch.full((1, 20, 3), 4.0)
    assert forecast(model, past).isfinite().all()


def test_series_do_not_see_each_other():
    model = make(means=[3.0] * 3, stds=[2.0] * 3)
    past, _ = make_batch(model)
    expected, order = forecast(model, past), [2, 0, 1]
    torch.testing.assert_close(forecast(model, past[..., order]), expected[..., order])
    past[..., 1] = past[..., 1].flip(1) * 2
    changed = forecast(model, past)
    torch.testing.assert_close(changed[..., [0, 2]], expected[..., [0, 2]])
    assert (changed[..., 1] - expected[..., 1]).abs().min() > 1e-4


def test_units_do_not_matter():
    """The same data in other units, with means and deviations to match, has the same loss, and its own forecast."""
    model = make(instance_norm=False)
    past, future = make_batch(model)
    units, zero = torch.tensor([1000.0, 0.01, 2.0]), torch.tensor([50.0, 1.0, -7.0])
    means = torch.tensor(SERIES["means"]) * units + zero
    other = make(instance_norm=False, means=means.tolist(), stds=(torch.tensor(SERIES["stds"]) * units).tolist())
    first, second = model(past, future), other(past * units + zero, future * units + zero)
    torch.testing.assert_close(second.loss, first.loss, rtol=1e-4, atol=0)
    torch.testing.assert_close(second.prediction_outputs, first.prediction_outputs * units + zero, rtol=1e-3, atol=1e-3)


def test_the_loss_is_that_of_standardised_values():
    model = make()
    past, future = make_batch(model)
    outputs = model(past, future)
    errors = standardised(model, outputs.prediction_outputs) - standardised(model, future)
    torch.testing.assert_close(outputs.losses, errors.square(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(outputs.loss, errors.square().mean(), rtol=1e-4, atol=0)


def test_the_loss_of_huber_is_squared_up_to_one_deviation_and_linear_beyond():
    model = make(loss="huber")
    past, future = make_batch(model)
    errors = standardised(model, model(past, future).prediction_outputs) - standardised(model, future)
    expected = torch.where(errors.abs() < 1, errors.square(), 2 * errors.abs() - 1)
    assert (errors.abs() < 1).any() and (errors.abs() > 1).any()
    torch.testing.assert_close(model(past, future).losses, expected, rtol=1e-4, atol=1e-5)


def test_two_half_batches_are_one_batch():
    model = make()
    past, future = make_batch(model, rows=6)
    model(past, future).loss.backward()
    whole = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    for rows in (slice(0, 2), slice(2, 6)):
        model(past[rows], future[rows], num_items_in_batch=future.numel()).loss.backward()
    for parameter, expected in zip(model.parameters(), whole, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("head", ["flatten", "last"])
def test_positions_that_the_head_sees(head):
    model = make(head=head, **({"encoder_layers": 1}))
    seen = []

    def note(_, inputs, output):
        output.retain_grad()
        seen.append(output)

    model.final_norm.register_forward_hook(note)
    past, future = make_batch(model)
    model(past, future).loss.backward()
    used = seen[0].grad.abs().amax(dim=(0, 2)) > 0
    assert used.tolist() == [head == "flatten"] * 4 + [True]


def test_the_last_steps_of_a_longer_past_count():
    model = make()
    past, _ = make_batch(model)
    longer = torch.cat([torch.full((4, 7, 3), torch.nan), past], 1)  # a gap long ago does no harm
    torch.testing.assert_close(forecast(model, longer), forecast(model, past))


def test_half_precision_keeps_large_values_apart():
    """Around 100,000 two neighbours in bfloat16 are 512 apart."""
    values = {"series": ["load"], "means": [1e5], "stds": [1.0]}
    model = make(**values)
    past, _ = make_batch(model)
    expected = forecast(model, past)
    halved = forecast(model.to(torch.bfloat16), past)
    assert halved.dtype == torch.float32
    torch.testing.assert_close(halved, expected, rtol=0, atol=0.2)


def test_it_learns():
    """A sine's next values, from its phase."""
    model = make(series=["sine"], means=[20.0], stds=[3.5], dropout=0.0).train()
    steps = torch.arange(25) + torch.arange(64)[:, None]  # (B, L + H)
    values = torch.sin(steps / 3)[..., None] * 5 + 20
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(60):
        loss = model(values[:, :20], values[:, 20:]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.02 < 0.3 < losses[0]


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_kernels_and_checkpointing_agree(kernel):
    model = make(dropout=0.0)
    past, future = make_batch(model)
    expected = model(past, future).loss
    model.set_attn_implementation(kernel)
    model.train().gradient_checkpointing_enable()
    torch.testing.assert_close(model(past, future).loss, expected)


def test_auto_classes_know_the_model(tmp_path):
    model = make()
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, TransformerForecasterConfig)
    assert (config.series, config.means, config.stds) == (SERIES["series"], SERIES["means"], SERIES["stds"])
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, TransformerForecaster)
    past, _ = make_batch(model)
    assert torch.equal(forecast(loaded, past), forecast(model, past))


@pytest.mark.slow  # a new process, which imports torch and transformers anew
def test_it_loads_without_this_package(tmp_path):
    model = make()
    model.save_pretrained(tmp_path / "model")
    code = (
        "import sys, torch; from transformers import AutoModel\n"
        "model = AutoModel.from_pretrained('model', trust_remote_code=True)\n"
        "assert not any(name.startswith('pipeline') for name in sys.modules)\n"
        "print(model(torch.arange(60.0).reshape(1, 20, 3)).prediction_outputs.sum().item())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = forecast(model, torch.arange(60.0).reshape(1, 20, 3)).sum().item()
    assert float(done.stdout) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda past: past[:, 1:], r"past_values has the shape \(4, 19, 3\); \(windows, 20 steps or more, 3 series"),
        (lambda past: past[..., :2], r"past_values has the shape \(4, 20, 2\).*3 series: HUFL, OT, HULL\) is needed"),
        (lambda past: past[0], r"past_values has the shape \(20, 3\)"),
        (
            lambda past: past.index_put((torch.tensor(2), torch.tensor(7), torch.tensor(1)), torch.tensor(torch.nan)),
            r"past_values: OT \(series 1\) is nan at step 7 of window 2",
        ),
        (
            lambda past: past.index_put((torch.tensor(0), torch.tensor(19), torch.tensor(2)), torch.tensor(torch.inf)),
            r"past_values: HULL \(series 2\) is inf at step 19 of window 0",
        ),
    ],
    ids=["short", "series", "dimensions", "nan", "infinite"],
)
def test_what_cannot_be_forecast_is_named(change, message):
    model = make()
    with pytest.raises(ValueError, match=message):
        model(change(make_batch(model)[0]))


def test_a_gap_behind_a_longer_past_is_counted_from_its_beginning():
    model = make()
    past = torch.cat([torch.zeros(4, 7, 3), make_batch(model)[0]], 1)
    past[3, 11, 0] = torch.nan
    with pytest.raises(ValueError, match=r"HUFL \(series 0\) is nan at step 11 of window 3"):
        model(past)


def test_a_future_of_another_shape_is_refused():
    model = make()
    past, future = make_batch(model)
    with pytest.raises(ValueError, match=r"future_values has the shape \(4, 1, 3\); \(4, 5, 3\) is needed"):
        model(past, future[:, :1])


def test_hidden_states_and_attentions_are_those_of_all_series():
    model = make()
    past = torch.randn(2, 20, 3)
    outputs = model(past, output_hidden_states=True, output_attentions=True)
    torch.testing.assert_close(outputs.prediction_outputs, model(past).prediction_outputs)
    assert [state.shape for state in outputs.hidden_states] == [(6, 5, 16)] * 3
    assert [weights.shape for weights in outputs.attentions] == [(6, 4, 5, 5)] * 2
    seen = []
    model.final_norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    second = model(past[1:], output_hidden_states=[-1])
    torch.testing.assert_close(second.hidden_states[-1], seen[0])
    torch.testing.assert_close(outputs.hidden_states[-1][3:], seen[0])  # the three series of the second window
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="kernel does not return attention weights"):
        model(past, output_attentions=True)


def test_without_a_loss():
    past, future = torch.randn(2, 20, 3), torch.randn(2, 5, 3)
    outputs = make()(past, future, return_loss=False)
    assert "loss" not in outputs and torch.equal(outputs.prediction_outputs, make()(past, future).prediction_outputs)
