"""Configuration of the text classifier."""

from huggingface_hub.dataclasses import strict

from .configuration_seq2seq import Seq2SeqTransformerConfig

POOLINGS = ("mean", "max", "first")


@strict
class TransformerClassifierConfig(Seq2SeqTransformerConfig):
    """Sizes of a Transformer encoder with a linear head; `id2label` names the classes.

    Args:
        pooling: what the head sees: "mean" or "max" of all real positions, or the "first" one.
        classifier_dropout: on what the head sees.
        conv_kernels: widths of convolutions over neighbouring tokens, whose rectified outputs are added to the
            embedding; none when left out.
        static_embeddings: word vectors that training leaves as they are, seen through a linear map, beside the
            embedding that it learns (the two channels of Kim 2014, section 3.1).
        adversarial_epsilon: how far the token vectors of a text are moved to where the loss grows fastest, all of them
            as one vector (Miyato et al. 2017, section 3, https://arxiv.org/abs/1605.07725, whose vectors are
            normalised before); the model learns from the text as it is and from the moved one, by the mean of both
            losses (Goodfellow et al. 2015, section 6, https://arxiv.org/abs/1412.6572); 0 is without. A run takes it
            from `training.adversarial_epsilon`.
        decoder_layers, tie_word_embeddings: not used.

    The sizes of the encoder are those of `Seq2SeqTransformerConfig`.

    Raises:
        ValueError: naming the field, when a value cannot work.
    """

    model_type = "transformer_classifier"

    is_encoder_decoder: bool = False
    use_cache: bool = False
    pooling: str = "mean"
    classifier_dropout: float | int = 0.1
    conv_kernels: list[int] | None = None
    static_embeddings: bool = False
    adversarial_epsilon: float | int = 0.0

    def __post_init__(self, **kwargs):
        self.conv_kernels = self.conv_kernels or []
        if any(width < 1 for width in self.conv_kernels):
            raise ValueError(f"conv_kernels={self.conv_kernels}: each must be at least 1")
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling={self.pooling!r}: it must be one of {', '.join(POOLINGS)}")
        if not 0 <= self.classifier_dropout < 1:
            raise ValueError(f"classifier_dropout={self.classifier_dropout}: it must be at least 0 and below 1")
        if self.adversarial_epsilon < 0:
            raise ValueError(f"adversarial_epsilon={self.adversarial_epsilon}: it must be at least 0")
        super().__post_init__(**kwargs)


TransformerClassifierConfig.register_for_auto_class()
