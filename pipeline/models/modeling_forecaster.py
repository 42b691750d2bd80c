"""A Transformer encoder over patches of time series, with a head for the steps to come.

Shapes: B windows, L steps of the past, H steps of the future, C series, N patches, P patch length, D = d_model, F
forecasts that are averaged.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_forecaster import TransformerForecasterConfig
from .transformer_layers import EncoderLayer, MultiHeadAttention, sinusoidal_positions


@dataclass
class ForecasterOutput(ModelOutput):
    """What a `TransformerForecaster` returns: the loss and the forecasts.

    Args:
        loss: mean error of standardised values by `config.loss`; in training, where two forecasts are averaged, the
            mean of their own errors.
        prediction_outputs: (B, H, C), in the units of the data.
        losses: (B, H, C), of which `loss` is the mean.
        hidden_states: (B * C, N, D) each, where asked for: the states of all series of the first window, then of the
            second, before, between and behind the layers (there before the last norm).
        attentions: (B * C, heads, N, N) of each layer, likewise.
    """

    loss: Tensor | None = None
    prediction_outputs: Tensor | None = None
    losses: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class TransformerForecaster(PreTrainedModel):
    """Forecasts series separately, with shared weights: patches, encoder, linear head (PatchTST, Nie et al. 2023)."""

    config: TransformerForecasterConfig
    main_input_name = "past_values"
    accepts_loss_kwargs = True  # tells Trainer to count the values of the whole step and pass num_items_in_batch
    supports_gradient_checkpointing = True
    _no_split_modules = ["EncoderLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _can_record_outputs = {"hidden_states": EncoderLayer, "attentions": OutputRecorder(MultiHeadAttention, index=1)}

    def __init__(self, config: TransformerForecasterConfig):
        super().__init__(config)
        self.patch_embedding = nn.Linear(config.patch_length, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList([EncoderLayer(config) for _ in range(config.encoder_layers)])
        self.final_norm = nn.LayerNorm(config.d_model) if config.pre_norm else nn.Identity()
        self.head_dropout = nn.Dropout(config.head_dropout)
        width = config.d_model * (config.num_patches if config.head == "flatten" else 1)
        self.head = nn.Linear(width, config.prediction_length)
        self.linear = nn.Linear(config.context_length, config.prediction_length) if config.linear_forecast else None
        self.gradient_checkpointing = False
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if self.config.level == "last" and module in (self.head, self.linear):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):  # as torch begins; Xavier's larger values cost accuracy on ETTh1
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        else:
            super()._init_weights(module)

    @torch.no_grad()
    def forget_change(self) -> None:
        """Forecast no change from the level, as at the start with `level: last`: the last value, repeated."""
        for layer in (self.head, self.linear):
            if layer is not None:
                layer.weight.zero_()
                layer.bias.zero_()

    @capture_outputs
    def forward(
        self,
        past_values: Tensor,
        future_values: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        return_loss: bool = True,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> ForecasterOutput:
        """Forecast the `prediction_length` steps that follow the past.

        Args:
            past_values: (B, L or longer, C), in the units of the data; the last L count. In float64 where the series
                vary little beside their level: float32 knows 8 steps between 1e8 and 1e8 + 64.
            future_values: (B, H, C), likewise; without them there is no loss.
            num_items_in_batch: divides the summed loss: the values to forecast in the whole optimizer step; those of
                this batch when left out.
            return_loss: whether to compare with the future where it is given. Trainer looks for this argument, as no
                other is called a label.
            output_attentions, output_hidden_states: return those of the encoder.

        Returns:
            `prediction_outputs` (B, H, C) in the units of the data, in float64 if the past is, and the loss of
            standardised values.

        Raises:
            ValueError: for too short a past, another number of series, a future of another shape, or a past value that
                is not finite, naming its place; when attentions are asked of a kernel that does not return them.
        """
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        if output_attentions and self.config._attn_implementation not in ("eager", "sdpa"):
            raise ValueError(
                f"output_attentions: the {self.config._attn_implementation!r} kernel does not return attention "
                "weights; call model.set_attn_implementation('eager') first"
            )
        self._check(past_values, future_values)
        # Before the mean is taken away nothing may be rounded: not to the half precision of the weights, and not to
        # float32 where the values come in float64, which a small wave on a high level needs.
        dtype = torch.promote_types(past_values.dtype, torch.float32)
        means, stds = (
            torch.tensor(statistics, device=past_values.device, dtype=dtype)
            for statistics in (self.config.means, self.config.stds)
        )
        length = self.config.context_length
        window = past_values.narrow(1, past_values.shape[1] - length, length)  # (B, L, C), L a number in a graph too
        window = window.to(dtype)
        origin = window[:, -1:] if self.config.level == "last" else means  # (B, 1, C) or (C), in the units of the data
        series = ((window - origin) / stds).float().transpose(1, 2)  # (B, C, L)
        centre: Tensor | float = 0.0
        spread: Tensor | float = 1.0
        if self.config.level == "mean":
            centre = series.mean(-1, keepdim=True)
        if self.config.instance_norm:
            spread = (series.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()  # a constant window has none
        series = (series - centre) / spread
        flat = series.flatten(0, 1)  # (B * C, L)
        branches = [self._forecast(flat, output_attentions)]  # (B * C, H)
        if self.linear is not None:
            branches.append(self.linear(flat.to(self.dtype)).float())
        forecasts = torch.stack(branches).unflatten(1, (-1, series.shape[1]))  # (F, B, C, H)
        forecasts = (forecasts * spread + centre).transpose(2, 3)  # (F, B, H, C)
        forecast = forecasts.mean(0)
        loss = losses = None
        if future_values is not None and return_loss:
            judged = forecasts if self.training else forecast[None]
            future = ((future_values.to(dtype) - origin) / stds).float()
            losses = self._error(judged - future).mean(0)  # (B, H, C)
            loss = losses.sum() / (losses.numel() if num_items_in_batch is None else num_items_in_batch)
        return ForecasterOutput(loss=loss, prediction_outputs=forecast.to(dtype) * stds + origin, losses=losses)

    def _forecast(self, series: Tensor, output_attentions: bool) -> Tensor:
        """Forecast by the encoder: (B * C, L) -> (B * C, H)."""
        config = self.config
        # The last value is repeated, as in the paper: the last steps then lie in as many patches as those before.
        missing = (config.num_patches - 1) * config.patch_stride + config.patch_length - series.shape[1]
        padded = torch.cat([series, series[:, -1:].expand(-1, missing)], 1)
        patches = padded.unfold(1, config.patch_length, config.patch_stride)  # (B * C, N, P)
        states = self.patch_embedding(patches.to(self.dtype))  # (B * C, N, D)
        positions = torch.arange(states.shape[1], device=states.device)
        states = self.dropout(states + sinusoidal_positions(positions, config.d_model, states.dtype))
        for layer in self.layers:
            states = layer(states, output_attentions=output_attentions)
        states = self.final_norm(states)
        seen = states.flatten(1) if config.head == "flatten" else states[:, -1]
        return self.head(self.head_dropout(seen)).float()

    def _error(self, difference: Tensor) -> Tensor:
        """Return twice Huber's loss where it is asked for, which is the squared error below one deviation."""
        if self.config.loss == "huber":
            return 2 * nn.functional.huber_loss(difference, torch.zeros_like(difference), reduction="none")
        return difference.square()

    def _check(self, past: Tensor, future: Tensor | None) -> None:
        length, names = self.config.context_length, self.config.series or []
        if past.ndim != 3 or past.shape[2] != len(names) or past.shape[1] < length:
            raise ValueError(
                f"past_values has the shape {tuple(past.shape)}; (windows, {length} steps or more, "
                f"{len(names)} series: {', '.join(names)}) is needed"
            )
        wanted = (past.shape[0], self.config.prediction_length, len(names))
        if future is not None and future.shape != wanted:
            raise ValueError(f"future_values has the shape {tuple(future.shape)}; {wanted} is needed")
        if torch.compiler.is_compiling():  # a graph cannot depend on values
            return
        finite = past[:, -length:].isfinite()
        if not bool(finite.all()):
            row, step, series = finite.logical_not().nonzero()[0].tolist()
            step += past.shape[1] - length
            raise ValueError(
                f"past_values: {names[series]} (series {series}) is {past[row, step, series]} at step {step} of "
                f"window {row}"
            )


AutoConfig.register(TransformerForecasterConfig.model_type, TransformerForecasterConfig)
AutoModel.register(TransformerForecasterConfig, TransformerForecaster)
TransformerForecaster.register_for_auto_class("AutoModel")
