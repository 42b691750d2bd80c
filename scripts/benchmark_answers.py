"""Answer a test split in one way, and print its measure as JSON; scripts/benchmark.py starts a process for each.

Needs ctranslate2 of the extra `export`.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import ctranslate2
import sacrebleu
from transformers import GenerationConfig

from pipeline.data.splits import open_split
from pipeline.exporting import ctranslate2 as ctranslate2_export
from pipeline.exporting.stock import to_stock
from pipeline.inference.generation import generate
from pipeline.tasks.config_loading import load_config
from pipeline.tasks.trained_model import load_trained
from scripts.benchmark_cases import Measurements, main
from scripts.machine import DTYPES

WARM_UP = 64  # sentences, before the time runs
STOCK_ROWS = 64  # of a batch
TRIED, SIZES = 200, (16, 32, 64)  # sentences to try CTranslate2 on; of a batch to try
POSITIONS = 512  # of a model of CTranslate2


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
    return measure_answers(test, lambda texts: call_generate(test, to_stock(test.model), texts, STOCK_ROWS))


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
    texts = [row["source"] for row in test.rows]
    answer(texts[:WARM_UP])
    begin = time.perf_counter()
    answers = answer(texts)
    seconds = time.perf_counter() - begin
    decoded = [test.task.tokenizer.decode(ids) for ids in answers]
    return {
        "sentences a second": len(answers) / seconds,
        "tokens a second": sum(map(len, answers)) / seconds,
        "BLEU": sacrebleu.corpus_bleu(decoded, [[row["target"] for row in test.rows]]).score,
        "answers": [zlib.crc32(json.dumps(ids).encode()) for ids in answers],
    }


def call_generate(test: TestSplit, model: Any, texts: list[str], size: int) -> list[list[int]]:
    answers = []
    for start in range(0, len(texts), size):
        inputs = test.task.tokenizer(texts[start : start + size], return_tensors="pt", padding=True).to(test.device)
        inputs.pop("token_type_ids", None)
        ids = model.generate(**inputs, generation_config=test.generation)
        answers += test.task.tokenizer.batch_decode(ids)
    return answers


def try_ctranslate2(arguments: argparse.Namespace, beams: int, dtype: str, quantization: str | None) -> dict[str, Any]:
    """Find the threads (of batches side by side, of each) and the sentences a batch that are fastest on a part."""
    test = open_test(arguments, beams)
    texts = [row["source"] for row in test.rows[:TRIED]]
    cores, rates = len(os.sched_getaffinity(0)), {}
    with tempfile.TemporaryDirectory() as folder:
        ctranslate2_export.write(test.model, test.task, Path(folder), POSITIONS, quantization)
        for threads, threads_each in {(1, cores), (cores, 1)}:
            translator = load_translator(folder, dtype, threads, threads_each)
            translate(test, translator, texts[:WARM_UP], SIZES[0])
            for size in SIZES:
                begin = time.perf_counter()
                translate(test, translator, texts, size)
                rates[threads, threads_each, size] = len(texts) / (time.perf_counter() - begin)
    best = max(rates, key=rates.__getitem__)
    return {"sentences a second": rates[best], "best": best}


def decode_by_ctranslate2(
    arguments: argparse.Namespace,
    beams: int,
    dtype: str,
    quantization: str | None,
    threads: int,
    threads_each: int,
    size: int,
) -> dict[str, Any]:
    """Answer by CTranslate2, which sorts the sentences by length itself."""
    test = open_test(arguments, beams)
    with tempfile.TemporaryDirectory() as folder:
        ctranslate2_export.write(test.model, test.task, Path(folder), POSITIONS, quantization)
        translator = load_translator(folder, dtype, threads, threads_each)
        return measure_answers(test, lambda texts: translate(test, translator, texts, size))


def load_translator(folder: str, dtype: str, threads: int, threads_each: int) -> Any:
    return ctranslate2.Translator(folder, compute_type=dtype, inter_threads=threads, intra_threads=threads_each)


def translate(test: TestSplit, translator: Any, texts: list[str], size: int) -> list[list[int]]:
    tokenizer = test.task.tokenizer
    sources = [tokenizer.convert_ids_to_tokens(ids) for ids in tokenizer(texts)["input_ids"]]
    results = translator.translate_batch(
        sources,
        beam_size=test.generation.num_beams,
        max_batch_size=size,
        max_decoding_length=test.generation.max_new_tokens,
    )
    return [tokenizer.convert_tokens_to_ids(result.hypotheses[0]) for result in results]


MEASUREMENTS: Measurements = {
    "decode": decode,
    "by_stock": decode_by_stock,
    "alone": decode_alone,
    "try_ctranslate2": try_ctranslate2,
    "by_ctranslate2": decode_by_ctranslate2,
}

if __name__ == "__main__":
    sys.exit(main(MEASUREMENTS))
