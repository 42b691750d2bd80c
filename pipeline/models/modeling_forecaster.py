"""A Transformer encoder over patches of time series, with a head for the steps to come.

Shapes: B windows, L steps of the past, H steps of the future, C series, N patches, P patch length, D = d_model.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .configuration_forecaster import TransformerForecasterConfig
from .transformer_layers import EncoderLayer, sinusoidal_positions


@dataclass
class ForecasterOutput(ModelOutput):
    """Args:
    loss: mean squared error of standardised values. losses: (B, H, C), those of which it is the mean.
    prediction_outputs: (B, H, C), in the units of the data.
    """

    loss: Tensor | None = None
    prediction_outputs: Tensor | None = None
    losses: Tensor | None = None


class TransformerForecaster(PreTrainedModel):
    """Each series by itself, with shared weights: patches, encoder, linear head (PatchTST, Nie et al. 2023)."""

    config: TransformerForecasterConfig
    main_input_name = "past_values"
    accepts_loss_kwargs = True  # tells Trainer to count the values of the whole step and pass num_items_in_batch
    supports_gradient_checkpointing = True
    _no_split_modules = ["EncoderLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: TransformerForecasterConfig):
        super().__init__(config)
        padded = config.context_length + config.patch_stride
        self.num_patches = (padded - config.patch_length) // config.patch_stride + 1
        self.patch_embedding = nn.Linear(config.patch_length, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList([EncoderLayer(config) for _ in range(config.encoder_layers)])
        self.final_norm = nn.LayerNorm(config.d_model) if config.pre_norm else nn.Identity()
        self.head_dropout = nn.Dropout(config.head_dropout)
        width = config.d_model * (self.num_patches if config.head == "flatten" else 1)
        self.head = nn.Linear(width, config.prediction_length)
        self.gradient_checkpointing = False
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    def forward(
        self,
        past_values: Tensor,
        future_values: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> ForecasterOutput | tuple:
        """Forecasts the `prediction_length` steps behind the past.

        Args:
            past_values: (B, L or longer, C), in the units of the data; the last L count.
            future_values: (B, H, C), likewise, for the loss.
            num_items_in_batch: divides the summed loss: the values to forecast in the whole optimizer step; those of
                this batch when left out.

        Raises:
            ValueError: for too short a past, another number of series, or a value that is not finite, naming its place.
        """
        self._check(past_values)
        means, stds = (
            torch.tensor(each, device=past_values.device, dtype=self.dtype)
            for each in (self.config.means, self.config.stds)
        )
        past = (past_values[:, -self.config.context_length :].to(self.dtype) - means) / stds  # (B, L, C)
        series = past.transpose(1, 2)  # (B, C, L)
        if self.config.instance_norm:
            centre = series.mean(-1, keepdim=True)
            spread = (series.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
            series = (series - centre) / spread
        forecast = self._forecast(series.flatten(0, 1)).unflatten(0, series.shape[:2])  # (B, C, H)
        if self.config.instance_norm:
            forecast = forecast * spread + centre
        forecast = forecast.transpose(1, 2)  # (B, H, C)
        losses = None if future_values is None else (forecast - (future_values.to(self.dtype) - means) / stds).square()
        loss = None
        if losses is not None:
            loss = losses.sum() / (losses.numel() if num_items_in_batch is None else num_items_in_batch)
        result = ForecasterOutput(loss=loss, prediction_outputs=forecast * stds + means, losses=losses)
        return result.to_tuple() if return_dict is False else result

    def _forecast(self, series: Tensor) -> Tensor:
        """(B * C, L) -> (B * C, H)."""
        config = self.config
        last = series[:, -1:].expand(-1, config.patch_stride)  # so that the last steps have a patch of their own
        patches = torch.cat([series, last], 1).unfold(1, config.patch_length, config.patch_stride)  # (B * C, N, P)
        states = self.patch_embedding(patches)  # (B * C, N, D)
        positions = torch.arange(states.shape[1], device=states.device)
        states = self.dropout(states + sinusoidal_positions(positions, config.d_model, states.dtype))
        for layer in self.layers:
            states = layer(states)
        states = self.final_norm(states)
        seen = states.flatten(1) if config.head == "flatten" else states[:, -1]
        return self.head(self.head_dropout(seen))

    def _check(self, values: Tensor) -> None:
        length, names = self.config.context_length, self.config.series or []
        if values.ndim != 3 or values.shape[2] != len(names) or values.shape[1] < length:
            raise ValueError(
                f"past_values has the shape {tuple(values.shape)}; (windows, {length} steps or more, "
                f"{len(names)} series: {', '.join(names)}) is needed"
            )
        if not bool(values.isfinite().all()):
            row, step, series = values.isfinite().logical_not().nonzero()[0].tolist()
            raise ValueError(
                f"past_values: {names[series]} is {values[row, step, series]} at step {step} of window {row}"
            )


AutoConfig.register(TransformerForecasterConfig.model_type, TransformerForecasterConfig)
AutoModel.register(TransformerForecasterConfig, TransformerForecaster)
TransformerForecaster.register_for_auto_class("AutoModel")
