"""Models of seconds that are served in this process, and as a real server on a port of its own."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from fastapi import FastAPI
from transformers import GenerationConfig

from pipeline.models.configuration_classifier import TransformerClassifierConfig
from pipeline.models.configuration_forecaster import TransformerForecasterConfig
from pipeline.models.configuration_lstm import LSTMConfig
from pipeline.models.configuration_seq2seq import Seq2SeqTransformerConfig
from pipeline.models.modeling_classifier import TransformerForSequenceClassification
from pipeline.models.modeling_forecaster import TransformerForecaster
from pipeline.models.modeling_lstm import LSTMForCausalLM
from pipeline.models.modeling_seq2seq import Seq2SeqTransformerForConditionalGeneration
from pipeline.serving.answering import ServedModel
from pipeline.serving.asking import Limits
from pipeline.serving.server import make_server
from pipeline.tasks.base import Task
from pipeline.tasks.forecasting import Forecasting
from pipeline.tasks.language_modeling import LanguageModeling
from pipeline.tasks.sequence_to_sequence import SequenceToSequence
from pipeline.tasks.text_classification import TextClassification
from tests.conftest import TINY
from tokenizer.training import train

WORDS = "a b c d e f g h"
QUICK = Limits(latency=0.002, seconds=20)
GENERATION = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_new_tokens": 6, "suppress_tokens": [0, 1]}

# Format -> a request that it answers, where its error is, and its status for a wrong token.
ROUTES: dict[str, tuple[str, dict[str, Any], list[str], int]] = {
    "libretranslate": ("/translate", {"q": "{text}", "source": "en", "target": "fr"}, ["error"], 403),
    "deepl": ("/v2/translate", {"text": ["{text}"], "target_lang": "FR"}, ["message"], 403),
    "huggingface": ("/", {"inputs": "{text}"}, ["error"], 401),
    "openai": (
        "/v1/chat/completions",
        {"model": "any", "messages": [{"role": "user", "content": "{text}"}]},
        ["error", "message"],
        401,
    ),
    "own": ("/api/answer", {"text": "{text}"}, ["error"], 401),
}
FORMATS = pytest.mark.parametrize("name", ROUTES)


def post(client, name: str, text: str = "a b c", **options):
    path, body, *_ = ROUTES[name]
    filled = json.loads(json.dumps(body).replace("{text}", json.dumps(text)[1:-1]))
    return client.post(path, json=filled, **options)


def error_of(name: str, response) -> str:
    value = response.json()
    for key in ROUTES[name][2]:
        value = value[key]
    return value


def text_of(name: str, response) -> str:
    assert response.status_code == 200, response.text
    body = response.json()
    return {
        "libretranslate": lambda: body["translatedText"],
        "deepl": lambda: body["translations"][0]["text"],
        "huggingface": lambda: body[0]["translation_text"],
        "openai": lambda: body["choices"][0]["message"]["content"],
        "own": lambda: body["answers"][0]["text"],
    }[name]()


def make_served(kind: str = "translator", languages: tuple[str, ...] = ()) -> ServedModel:
    """A small random model that tells texts apart, with its task."""
    torch.manual_seed(0)
    tokenizer = train([WORDS, WORDS], "word", 40, max_length=64)
    tokenizer.add_tokens([f"<2{code}>" for code in languages], special_tokens=True)
    size, columns = len(tokenizer), []
    if kind == "translator":
        tags = {code: tokenizer.convert_tokens_to_ids(f"<2{code}>") for code in languages}
        config = Seq2SeqTransformerConfig(
            vocab_size=size, **TINY, tie_word_embeddings=False, languages=tags or None, target_lang_in="source"
        )
        model, columns = Seq2SeqTransformerForConditionalGeneration(config), ["en", "fr"]
        task: Task = SequenceToSequence.from_model(tokenizer, config)
    elif kind == "classifier":
        config = TransformerClassifierConfig(vocab_size=size, id2label={0: "good", 1: "bad", 2: "odd"}, d_model=16)
        model, task = TransformerForSequenceClassification(config), TextClassification.from_model(tokenizer, config)
    elif kind == "language model":
        config = LSTMConfig(vocab_size=size, embedding_size=12, hidden_size=16)
        model, task = LSTMForCausalLM(config), LanguageModeling(tokenizer)
    else:
        config = TransformerForecasterConfig(
            context_length=8, prediction_length=3, series=["up", "down"], patch_length=4, patch_stride=4, d_model=16
        )
        model, task = TransformerForecaster(config), Forecasting.from_model(None, config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    if model.can_generate():
        model.generation_config = GenerationConfig(**GENERATION, decoder_start_token_id=1)
    return ServedModel(model.eval(), task, "tiny", columns=columns)


@contextmanager
def running(app: FastAPI, limits: Limits = QUICK) -> Iterator[str]:
    """Serve an app on a free port of this machine; gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = make_server(app, limits)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
