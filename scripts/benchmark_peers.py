"""Trainings of peers, from environments of their own: eole and JoeyNMT.

Both get the texts cut into pieces by our tokenizer, its vocabulary, a model of the same sizes and dropout, Adam, the
same label smoothing, and half of `data.batch_tokens` a batch: they count the longer side of each row, we count both.

Sources: https://eole-nlp.github.io/eole (version 0.6.4), https://joeynmt.readthedocs.io (version 2.3.0).
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from pipeline.config import Config
from pipeline.data.splits import open_split
from pipeline.models.configuration_seq2seq import Seq2SeqTransformerConfig
from pipeline.tasks.config_loading import load_config
from pipeline.tasks.registry import get_task
from scripts.benchmark_setting import Setting

EOLE_LINE = re.compile(r"Step +\d+/.*?; *[\d.]+/ *([\d.]+) tok/s;")  # source and target tokens a second
JOEYNMT_LINE = re.compile(r"Tokens per Sec: *([\d.]+)")  # target tokens
Reader = Callable[[str], dict[str, float] | None]


def eole_training(setting: Setting, python: str, steps_a_log: int) -> tuple[list[str], Reader]:
    """Return the command of a training by eole, and what reads the rate of target tokens from a line of its log."""
    folder, config, model = write_texts(setting)
    values: dict[str, Any] = {
        "src_vocab": str(folder / "vocabulary.txt"),
        "share_vocab": True,
        "overwrite": True,
        "save_data": str(folder / "eole-data"),
        "data": {"train": {"path_src": str(folder / "train.src"), "path_tgt": str(folder / "train.trg")}},
        "report_every": steps_a_log,
        "model": {
            "architecture": "transformer",
            "hidden_size": model.d_model,
            "layers": model.encoder_layers,
            "encoder": {"layers": model.encoder_layers},
            "decoder": {"layers": model.decoder_layers},
            "heads": model.attention_heads,
            "transformer_ff": model.ffn_dim,
            "embeddings": {"word_vec_size": model.d_model, "position_encoding_type": "SinusoidalInterleaved"},
            "share_embeddings": True,
            "share_decoder_embeddings": True,
        },
        "training": {
            "model_path": str(folder / "eole-model"),
            "batch_type": "tokens",
            "batch_size": (config.data.batch_tokens or 4096) // 2,
            "normalization": "tokens",
            "train_steps": 1_000_000,
            "save_checkpoint_steps": 1_000_000,
            "optim": "adam",
            "learning_rate": config.training.get("learning_rate", 1e-3),
            "warmup_steps": int(config.training.get("warmup_steps", 0)),
            "label_smoothing": config.training.get("label_smoothing_factor", 0.0),
            "dropout": [float(model.dropout)],
            "attention_dropout": [float(model.attention_dropout)],
        },
    }
    (folder / "eole.yaml").write_text(json.dumps(values))
    command = [str(Path(python).parent / "eole"), "train", "-config", str(folder / "eole.yaml")]
    return command, reader(EOLE_LINE)


def joeynmt_training(setting: Setting, python: str, steps_a_log: int) -> tuple[list[str], Reader]:
    """Return the command of a training by JoeyNMT, and what reads the rate of target tokens from a line of its log."""
    folder, config, model = write_texts(setting)
    side = {"level": "word", "voc_file": str(folder / "vocabulary.txt"), "max_length": config.data.max_source_length}
    half = {
        "type": "transformer",
        "num_heads": model.attention_heads,
        "embeddings": {"embedding_dim": model.d_model, "scale": True, "dropout": float(model.dropout)},
        "hidden_size": model.d_model,
        "ff_size": model.ffn_dim,
        "dropout": float(model.dropout),
        "layer_norm": "pre" if model.pre_norm else "post",
    }
    special = {"unk": "<unk>", "pad": "<pad>", "bos": "<s>", "eos": "</s>"}
    values = {
        "name": "benchmark",
        "joeynmt_version": "2.3.0",
        "model_dir": str(folder / "joeynmt-model"),
        "use_cuda": False,
        "fp16": False,
        "data": {
            "train": str(folder / "train"),
            "dev": str(folder / "dev"),
            "dataset_type": "plain",
            "special_symbols": {f"{name}_token": text for name, text in special.items()}
            | {f"{name}_id": number for number, name in enumerate(special)},
            "src": {"lang": "src", **side},
            "trg": {"lang": "trg", **side},
        },
        "testing": {"beam_size": 1},
        "training": {
            "overwrite": True,
            "batch_type": "token",
            "batch_size": (config.data.batch_tokens or 4096) // 2,
            "normalization": "tokens",
            "optimizer": "adam",
            "learning_rate": config.training.get("learning_rate", 1e-3),
            "label_smoothing": config.training.get("label_smoothing_factor", 0.0),
            "scheduling": "noam",
            "learning_rate_warmup": 1000,
            "learning_rate_min": 0.0,  # below which it would stop
            "epochs": 1000,
            "logging_freq": steps_a_log,
            "validation_freq": 1_000_000,
        },
        "model": {
            "initializer": "xavier_uniform",
            "embed_initializer": "xavier_uniform",
            "tied_embeddings": True,
            "tied_softmax": True,
            "encoder": {**half, "num_layers": model.encoder_layers},
            "decoder": {**half, "num_layers": model.decoder_layers},
        },
    }
    (folder / "joeynmt.yaml").write_text(json.dumps(values))
    return [python, "-m", "joeynmt", "train", str(folder / "joeynmt.yaml"), "--skip-test"], reader(JOEYNMT_LINE)


def reader(pattern: re.Pattern[str]) -> Reader:
    def read(line: str) -> dict[str, float] | None:
        match = pattern.search(line)
        return {"items_per_second": float(match[1])} if match else None

    return read


def write_texts(setting: Setting) -> tuple[Path, Config, Seq2SeqTransformerConfig]:
    """Write the training pairs as pieces between spaces, and the vocabulary, a piece a line."""
    config = load_config(setting.config, setting.training_overrides())
    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer.path)
    model = Seq2SeqTransformerConfig(vocab_size=len(tokenizer), **config.model)
    folder = setting.folder / "peers"
    if not folder.is_dir():
        folder.mkdir()
        rows = [*open_split(config.data, config.data.train, get_task(config.task).columns(config))]
        for name, suffix in (("source", "src"), ("target", "trg")):
            lines = [" ".join(tokenizer.tokenize(row[name])) + "\n" for row in rows]
            (folder / f"train.{suffix}").write_text("".join(lines))
            (folder / f"dev.{suffix}").write_text("".join(lines[:16]))
        special = set(tokenizer.all_special_tokens)
        pieces = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
        (folder / "vocabulary.txt").write_text("".join(f"{piece}\n" for piece in pieces if piece not in special))
    return folder, config, model
