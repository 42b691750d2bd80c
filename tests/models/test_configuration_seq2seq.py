import pytest
from transformers import AutoConfig

from pipeline.models.configuration_seq2seq import Seq2SeqTransformerConfig


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"d_model": 30, "attention_heads": 4}, "d_model=30 is not divisible by attention_heads=4"),
        ({"d_model": 15, "attention_heads": 5}, "d_model=15 must be even"),
        ({"decoder_layers": 0}, "decoder_layers=0: it must be at least 1"),
        ({"dropout": 1.5}, "dropout=1.5"),
    ],
)
def test_impossible_sizes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        Seq2SeqTransformerConfig(**changes)


def test_sizes_by_transformers_names():
    config = Seq2SeqTransformerConfig(d_model=16, attention_heads=4, decoder_layers=3)
    assert (config.hidden_size, config.num_attention_heads, config.num_hidden_layers) == (16, 4, 3)


def test_saved_and_loaded_with_its_pipeline(tmp_path):
    """In each config a dict of its own, as `transformers.pipeline` changes what it finds."""
    config = Seq2SeqTransformerConfig(d_model=16, attention_heads=4, label_smoothing=0.1)
    assert config.custom_pipelines is not Seq2SeqTransformerConfig().custom_pipelines
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is Seq2SeqTransformerConfig
    assert loaded.to_dict() == {**config.to_dict(), "_name_or_path": str(tmp_path)}
    assert loaded.custom_pipelines["translation"]["impl"] == "translation_pipeline.TranslationPipeline"


def test_languages_are_written_where_there_are_any():
    assert not {"languages", "target_lang_in"} & Seq2SeqTransformerConfig().to_dict().keys()
    config = Seq2SeqTransformerConfig(vocab_size=40, languages={"de": 39}, target_lang_in="decoder")
    again = Seq2SeqTransformerConfig.from_dict(config.to_dict())
    assert (again.languages, again.target_lang_in) == ({"de": 39}, "decoder")
    with pytest.raises(ValueError, match=r"languages: the token 40 of de is not below vocab_size=40"):
        Seq2SeqTransformerConfig(vocab_size=40, languages={"de": 40}, target_lang_in="decoder")
    with pytest.raises(ValueError, match=r"target_lang_in=None: it must be source or decoder"):
        Seq2SeqTransformerConfig(languages={"de": 39})
