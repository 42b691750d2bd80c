"""Answer a test split by CTranslate2, and print its measure as JSON; scripts/benchmark.py starts a process for each.

Needs ctranslate2 of the extra `export`.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import ctranslate2

from pipeline.exporting import ctranslate2 as ctranslate2_export
from scripts.benchmark_answers import WARM_UP, TestSplit, measure_answers, open_test
from scripts.benchmark_cases import Measurements, main

TRIED, SIZES = 200, (16, 32, 64, 128)  # sentences to try CTranslate2 on; of a batch to try
POSITIONS = 512  # of a model of CTranslate2


def try_settings(arguments: argparse.Namespace, beams: int, dtype: str, quantization: str | None) -> dict[str, Any]:
    """Find the threads (of batches side by side, of each) and the sentences a batch that are fastest on a part.

    There is no best where CTranslate2 lacks the type on this processor with this library of matrix products.
    """
    if dtype not in ctranslate2.get_supported_compute_types("cpu"):
        return {"sentences a second": 0.0, "best": None}
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


def decode(
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


MEASUREMENTS: Measurements = {"try": try_settings, "decode": decode}

if __name__ == "__main__":
    sys.exit(main(MEASUREMENTS))
