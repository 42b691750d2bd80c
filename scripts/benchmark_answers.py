"""Answer a test split in one way, and print its measure as JSON; scripts/benchmark.py starts a process for each."""

import argparse
import json
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from transformers import GenerationConfig

from pipeline.data.splits import open_split
from pipeline.exporting.stock import to_stock
from pipeline.inference.generation import generate
from pipeline.tasks.config_loading import load_config
from pipeline.tasks.trained_model import load_trained, use_attention_of_any_shape
from scripts.benchmark_cases import Measurements, main
from scripts.machine import DTYPES

WARM_UP = 64  # sentences, before the time runs
STOCK_ROWS = 64  # of a batch


def decode(arguments: argparse.Namespace, beams: int, dtype: str) -> dict[str, Any]:
    """Answer the test split as `teacher-forcing generate` does."""
    test = open_test(arguments, beams)
    model = test.model.to(DTYPES[dtype])

    def answer(texts: list[str]) -> Any:  # ids, as `open_test` leaves them
        return generate(model, test.task, texts, test.generation)

    return measure_answers(test, answer)


def decode_by_stock(arguments: argparse.Namespace, beams: int) -> dict[str, Any]:
    """Answer by transformers' own model with the same weights, in batches in the order of the file."""
    test = open_test(arguments, beams)
    model = to_stock(test.model).to(test.device)
    return measure_answers(test, lambda texts: call_generate(test, model, texts, STOCK_ROWS))


def decode_alone(arguments: argparse.Namespace, beams: int) -> dict[str, Any]:
    """Answer by our model's own `generate`, one sentence at a time."""
    test = open_test(arguments, beams)
    return measure_answers(test, lambda texts: call_generate(test, test.model, texts, 1))


@dataclass(frozen=True)
class TestSplit:
    """What is answered, and by which model and settings."""

    model: Any
    task: Any
    generation: GenerationConfig
    rows: list[dict[str, Any]]
    device: str


def open_test(arguments: argparse.Namespace, beams: int) -> TestSplit:
    """Load the checkpoint, and the test split of the config; answers stay ids, without special tokens."""
    config = load_config(arguments.config, arguments.overrides)
    use_attention_of_any_shape()  # as generate has it
    model, task = load_trained(arguments.checkpoint)
    rows = [*open_split(config.data, str(config.data.test or "test"), task.columns(config))]
    options = GenerationConfig(
        num_beams=beams,
        max_new_tokens=config.data.max_target_length,
        **{key: getattr(model.config, key) for key in ("pad_token_id", "eos_token_id", "decoder_start_token_id")},
    )
    tokenizer: Any = task.tokenizer
    ends = {options.pad_token_id, options.eos_token_id, options.decoder_start_token_id}
    tokenizer.batch_decode = lambda rows, **_: [[id for id in row if id not in ends] for row in rows.tolist()]
    return TestSplit(model.to(arguments.device), task, options, rows, arguments.device)


def measure_answers(test: TestSplit, answer: Callable[[list[str]], list[list[int]]]) -> dict[str, Any]:
    """Measure what a way to answer gives: sentences and tokens a second, BLEU, and a checksum of each answer."""
    import sacrebleu  # not on every machine of scripts/check_gpu.py

    answers, seconds = time_answers(test, answer)
    decoded = [test.task.tokenizer.decode(ids) for ids in answers]
    return {
        "sentences a second": len(answers) / seconds,
        "tokens a second": sum(map(len, answers)) / seconds,
        "BLEU": sacrebleu.corpus_bleu(decoded, [[row["target"] for row in test.rows]]).score,
        "answers": [zlib.crc32(json.dumps(ids).encode()) for ids in answers],
    }


def time_answers(test: TestSplit, answer: Callable[[list[str]], list[list[int]]]) -> tuple[list[list[int]], float]:
    """Return the answers to all sources, as ids, and the seconds that they took."""
    texts = [row["source"] for row in test.rows]
    answer(texts[:WARM_UP])
    begin = time.perf_counter()
    answers = answer(texts)
    return answers, time.perf_counter() - begin


def call_generate(test: TestSplit, model: Any, texts: list[str], size: int) -> list[list[int]]:
    answers = []
    for start in range(0, len(texts), size):
        inputs = test.task.tokenizer(texts[start : start + size], return_tensors="pt", padding=True).to(test.device)
        inputs.pop("token_type_ids", None)
        ids = model.generate(**inputs, generation_config=test.generation)
        answers += test.task.tokenizer.batch_decode(ids)
    return answers


MEASUREMENTS: Measurements = {
    "decode": decode,
    "by_stock": decode_by_stock,
    "alone": decode_alone,
}

if __name__ == "__main__":
    sys.exit(main(MEASUREMENTS))
