import pytest

from pipeline.models.configuration_classifier import TransformerClassifierConfig
from tests.conftest import TINY


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"conv_kernels": [3, 0]}, r"conv_kernels=\[3, 0\]: each must be at least 1"),
        ({"pooling": "sum"}, "pooling=.sum.: it must be one of mean, max, first"),
        ({"classifier_dropout": 1.0}, "below 1"),
    ],
)
def test_impossible_settings_are_named(changes, problem):
    with pytest.raises(ValueError, match=problem):
        TransformerClassifierConfig(**TINY, **changes)


def test_convolutions_are_none_when_left_out():
    assert TransformerClassifierConfig(**TINY).conv_kernels == []


def test_no_translation_is_offered():
    """By `transformers.pipeline`, as its parent config does for encoder and decoder."""
    assert not hasattr(TransformerClassifierConfig(**TINY), "custom_pipelines")
