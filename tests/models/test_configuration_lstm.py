import pytest

from pipeline.models.configuration_lstm import LSTMConfig


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"hidden_size": 0}, "hidden_size=0: it must be at least 1"),
        ({"embedding_size": -1}, "embedding_size=-1"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0"),
        ({"dropout": 1.0}, "dropout=1.0: it must be at least 0 and below 1"),
        ({"embedding_dropout": -0.1}, "embedding_dropout=-0.1"),
        ({"word_dropout": 1}, "word_dropout=1"),
        ({"weight_dropout": 1.5}, "weight_dropout=1.5"),
        ({"label_smoothing": 1.5}, "label_smoothing=1.5"),
    ],
)
def test_impossible_sizes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        LSTMConfig(**changes)


def test_the_last_layer_is_as_wide_as_a_tied_embedding():
    sizes = {"embedding_size": 12, "hidden_size": 16, "num_hidden_layers": 3}
    assert LSTMConfig(**sizes).layer_sizes == [16, 16, 16]
    assert LSTMConfig(**sizes, tie_word_embeddings=True).layer_sizes == [16, 16, 12]
