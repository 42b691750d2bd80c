import pytest

from pipeline.models.configuration_forecaster import TransformerForecasterConfig

SETTINGS = {
    **{"d_model": 16, "encoder_layers": 2, "attention_heads": 4, "ffn_dim": 32},
    **{"context_length": 20, "prediction_length": 5, "patch_length": 8, "patch_stride": 4},
    **{"series": ["HUFL", "OT", "HULL"], "means": [7.0, 13.0, -2.0], "stds": [5.0, 8.0, 0.5]},
}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"patch_length": 21}, "patch_length=21 is longer than context_length=20"),
        ({"patch_stride": 9}, "patch_stride=9 is longer than patch_length=8"),
        ({"prediction_length": 0}, "prediction_length=0: it must be at least 1"),
        ({"d_model": 30}, "d_model=30 must be even, and a multiple of attention_heads=4"),
        ({"d_model": 15, "attention_heads": 5}, "d_model=15 must be even"),
        ({"head": "mean"}, "head='mean': it must be one of flatten, last"),
        ({"level": "median"}, "level='median': it must be one of last, mean, none"),
        ({"loss": "mae"}, "loss='mae': it must be one of mse, huber"),
        ({"head_dropout": 1.0}, "head_dropout=1.0"),
        ({"means": [1.0]}, "means has 1 values for 3 series"),
        ({"stds": [1.0, 2.0]}, "stds has 2 values for 3 series"),
        ({"stds": [1.0, 0.0, 2.0]}, "stds: 0.0 for OT"),
        ({"stds": [1.0, float("nan"), 2.0]}, "stds: nan for OT"),
    ],
)
def test_impossible_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        TransformerForecasterConfig(**{**SETTINGS, **changes})


def test_a_series_without_name_and_units():
    config = TransformerForecasterConfig()
    assert (config.series, config.means, config.stds) == (["value"], [0.0], [1.0])
    several = TransformerForecasterConfig(series=["a", "b"])
    assert (several.means, several.stds) == ([0.0, 0.0], [1.0, 1.0])


@pytest.mark.parametrize(
    "changes, level, instance_norm",
    [
        ({}, "mean", True),
        ({"instance_norm": False}, "none", False),  # as checkpoints from before there was a level
        ({"level": "none"}, "none", False),
        ({"level": "last"}, "last", True),
        ({"level": "mean", "instance_norm": False}, "mean", False),
    ],
)
def test_what_is_taken_out_of_a_window(changes, level, instance_norm):
    config = TransformerForecasterConfig(**{**SETTINGS, **changes})
    assert (config.level, config.instance_norm) == (level, instance_norm)


def test_a_patch_begins_at_every_stride():
    assert TransformerForecasterConfig(**SETTINGS).num_patches == 5
    assert TransformerForecasterConfig(**SETTINGS | {"context_length": 21}).num_patches == 6


def test_saved_and_loaded(tmp_path):
    config = TransformerForecasterConfig(**SETTINGS)
    config.save_pretrained(tmp_path)
    loaded = TransformerForecasterConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == {**config.to_dict(), "_name_or_path": loaded.to_dict()["_name_or_path"]}
