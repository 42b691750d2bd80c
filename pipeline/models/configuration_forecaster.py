"""Configuration of the forecaster of time series."""

import math

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

HEADS = ("flatten", "last")
LEVELS = ("last", "mean", "none")
LOSSES = ("mse", "huber")


@strict
class TransformerForecasterConfig(PreTrainedConfig):
    """Sizes of a Transformer encoder over patches of time series, one series at a time (PatchTST, Nie et al. 2023,
    https://arxiv.org/abs/2211.14730).

    `patch_length=1, patch_stride=1, instance_norm=False, head="last", prediction_length=1` is the plain setting: the
    next value from the last position.

    Args:
        context_length: steps of the past that a forecast sees.
        prediction_length: steps that it makes.
        series: names of the series, in the order of their columns; one, "value", when left out. A run takes them from
            its data.
        means, stds: of each series, over the training data and in its units; values are standardised by them. 0 and 1
            when left out. A run takes them from its data.
        patch_length: steps in a patch.
        patch_stride: steps from one patch to the next, at most `patch_length`.
        level: what is subtracted from each window and added back to its forecast: its "last" value (NLinear, Zeng et
            al. 2023, https://arxiv.org/abs/2205.13504), its "mean" (Kim et al. 2022,
            https://openreview.net/forum?id=cGDAkQo1C0p), or "none", which leaves the window as it is, its deviation
            too. With "last" the training starts from a forecast that repeats the last value: the start for series that
            wander. When left out: "mean" with `instance_norm`, "none" without it.
        instance_norm: divide each window by its deviation, and multiply its forecast by it (Kim et al. 2022; without
            their learned scale and shift).
        head: what the linear head sees: all positions ("flatten"), or the "last" one.
        head_dropout: on what the head sees.
        linear_forecast: average the encoder's forecast with that of one linear map of the window (RLinear, Li et al.
            2023, https://arxiv.org/abs/2305.10721). Each learns by its own loss, so that their errors differ.
        loss: what is learned by, of standardised values: the squared error ("mse"), or "huber", which grows linearly
            beyond one deviation, so that outliers weigh less (Huber 1964, https://doi.org/10.1214/aoms/1177703732).
        d_model: width of every hidden state; even, and a multiple of `attention_heads`.
        encoder_layers: number of layers.
        attention_heads: heads of every attention, `d_model / attention_heads` wide each.
        ffn_dim: inner width of the feed-forward blocks.
        activation_function: "relu", "gelu", or any name in `transformers.activations.ACT2FN`.
        pre_norm: normalise the input of every block, and once more at the end; false is post-norm.
        dropout: on embeddings and on every block's output.
        attention_dropout: on attention weights.
        activation_dropout: inside the feed-forward block.

    Raises:
        ValueError: naming the field, when a size cannot work.
    """

    model_type = "transformer_forecaster"
    keys_to_ignore_at_inference = ["losses"]
    attribute_map = {
        "hidden_size": "d_model",
        "num_hidden_layers": "encoder_layers",
        "num_attention_heads": "attention_heads",
    }

    context_length: int = 336
    prediction_length: int = 96
    series: list[str] | None = None
    means: list[float] | None = None
    stds: list[float] | None = None
    patch_length: int = 16
    patch_stride: int = 8
    level: str | None = None
    instance_norm: bool = True
    head: str = "flatten"
    linear_forecast: bool = False
    loss: str = "mse"
    d_model: int = 64
    encoder_layers: int = 3
    attention_heads: int = 4
    ffn_dim: int = 128
    activation_function: str = "gelu"
    pre_norm: bool = True
    dropout: float | int = 0.2
    head_dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    activation_dropout: float | int = 0.0
    is_encoder_decoder: bool = False

    def __post_init__(self, **kwargs):
        self.series = self.series or ["value"]
        self.means = self.means or [0.0] * len(self.series)
        self.stds = self.stds or [1.0] * len(self.series)
        self.level = self.level or ("mean" if self.instance_norm else "none")
        self._check_sizes()
        self._check_series()
        for name, values in (("head", HEADS), ("level", LEVELS), ("loss", LOSSES)):
            if getattr(self, name) not in values:
                raise ValueError(f"{name}={getattr(self, name)!r}: it must be one of {', '.join(values)}")
        self.instance_norm = self.instance_norm and self.level != "none"
        for name in ("dropout", "head_dropout", "attention_dropout", "activation_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: it must be at least 0 and below 1")
        super().__post_init__(**kwargs)

    def _check_sizes(self) -> None:
        for name in (
            *("context_length", "prediction_length", "patch_length", "patch_stride"),
            *("d_model", "encoder_layers", "attention_heads", "ffn_dim"),
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: it must be at least 1")
        if self.patch_length > self.context_length:
            raise ValueError(f"patch_length={self.patch_length} is longer than context_length={self.context_length}")
        if self.patch_stride > self.patch_length:
            raise ValueError(
                f"patch_stride={self.patch_stride} is longer than patch_length={self.patch_length}: "
                "the steps between two patches would not be seen"
            )
        if self.d_model % self.attention_heads or self.d_model % 2:
            raise ValueError(
                f"d_model={self.d_model} must be even, and a multiple of attention_heads={self.attention_heads}"
            )

    def _check_series(self) -> None:
        series, stds = self.series or [], self.stds or []
        for name in ("means", "stds"):
            if len(getattr(self, name)) != len(series):
                raise ValueError(f"{name} has {len(getattr(self, name))} values for {len(series)} series")
        for name, std in zip(series, stds, strict=True):
            if not 0 < std < math.inf:
                raise ValueError(f"stds: {std} for {name}: a standard deviation must be above 0")

    @property
    def num_patches(self) -> int:
        """One begins at every `patch_stride`-th step."""
        return math.ceil(self.context_length / self.patch_stride)


TransformerForecasterConfig.register_for_auto_class()
