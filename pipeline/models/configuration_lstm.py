"""Configuration of the LSTM language model."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class LSTMConfig(PreTrainedConfig):
    """Sizes and special tokens of a stacked LSTM (Hochreiter and Schmidhuber 1997) as a language model.

    Args:
        vocab_size: number of tokens. A run takes it from its tokenizer.
        embedding_size: width of the token vectors, and of the last layer where the output is tied to them.
        hidden_size: width of the other layers' states.
        num_hidden_layers: LSTM layers, one upon the other.
        dropout: between the layers and before the output (Zaremba et al. 2014, https://arxiv.org/abs/1409.2329).
        embedding_dropout: on the token vectors.
        variational_dropout: both draw one mask for all tokens that a text has in a batch (Gal and Ghahramani 2016,
            https://arxiv.org/abs/1512.05287), in place of another for each token.
        word_dropout: share of the vocabulary whose vectors are zero, wherever they stand in a batch; likewise.
        weight_dropout: on the weights from a layer's state to its next, one mask for a batch (Merity et al. 2018,
            https://arxiv.org/abs/1708.02182).
        tie_word_embeddings: embedding and output projection are one matrix (Press and Wolf 2017,
            https://aclanthology.org/E17-2025); the last layer then is `embedding_size` wide.
        label_smoothing: share of the target probability spread over the vocabulary while training. A run takes it from
            `training.label_smoothing_factor`.

    Raises:
        ValueError: naming the field, when a size cannot work.
    """

    model_type = "lstm_language_model"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 8000
    embedding_size: int = 256
    hidden_size: int = 512
    num_hidden_layers: int = 2
    dropout: float | int = 0.0
    embedding_dropout: float | int = 0.0
    variational_dropout: bool = False
    word_dropout: float | int = 0.0
    weight_dropout: float | int = 0.0
    tie_word_embeddings: bool = False
    label_smoothing: float | int = 0.0
    is_encoder_decoder: bool = False
    use_cache: bool = True
    pad_token_id: int = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self, **kwargs):
        for name in ("vocab_size", "embedding_size", "hidden_size", "num_hidden_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: it must be at least 1")
        for name in ("dropout", "embedding_dropout", "word_dropout", "weight_dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: it must be at least 0 and below 1")
        super().__post_init__(**kwargs)

    @property
    def layer_sizes(self) -> list[int]:
        """Width of the state of each layer."""
        last = self.embedding_size if self.tie_word_embeddings else self.hidden_size
        return [self.hidden_size] * (self.num_hidden_layers - 1) + [last]


LSTMConfig.register_for_auto_class()
