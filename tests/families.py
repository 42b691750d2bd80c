"""Small random models of the families that a run can start from."""

import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedModel

BART = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
BART |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 64}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
BERT = {"vocab_size": 320, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
BERT |= {"intermediate_size": 32, "max_position_embeddings": 64}
FAMILIES: dict[str, dict] = {
    **dict.fromkeys(("bart", "mbart", "marian", "pegasus", "blenderbot", "blenderbot-small", "plbart", "mvp"), BART),
    **dict.fromkeys(("m2m_100", "pegasus_x", "bigbird_pegasus"), BART),
    "nllb-moe": {**BART, "num_experts": 2, "expert_capacity": 8},
    "led": {
        **BART,
        "attention_window": 8,
        "max_encoder_position_embeddings": 64,
        "max_decoder_position_embeddings": 64,
    },
    "prophetnet": {"hidden_size": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64}
    | {f"num_{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")},
    **dict.fromkeys(("t5", "mt5", "umt5", "longt5"), T5),
    "switch_transformers": {**T5, "num_experts": 2},
    "encoder-decoder": {
        "encoder": {"model_type": "bert", **BERT},
        "decoder": {"model_type": "bert", **BERT, "is_decoder": True, "add_cross_attention": True},
    },
}


def make_model(family: str, size: int, **ids) -> PreTrainedModel:
    """Make a model with `size` tokens; keyword arguments are special tokens."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family, **{"vocab_size": size, **FAMILIES[family], **ids, "tie_word_embeddings": True}
    )
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # far from uniform, so that another start gives other tokens
            parameter.normal_(std=0.5)
    return model
