"""Sentences a second of a test split: ours, transformers' own `generate` with the same weights, and CTranslate2.

Texts go in and ids come out, so encoding counts. Each turn first answers some texts that do not count. CTranslate2 gets
the threads and the batch that are fastest on a part of the split, with MKL and without, which are tried before its
turn. Its answers and ours are compared with those of `model.generate` for one sentence at a time.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from scripts.benchmark_setting import Contenders, Measure, Numbers, Ratio, Setting

SCRIPT, CTRANSLATE2_SCRIPT = "benchmark_answers.py", "benchmark_ctranslate2.py"
SEARCHES = {"greedy": 1, "beam 5": 5}  # name -> beams
RATE = "sentences a second"
REFERENCE = "generate, one at a time"
OURS, CTRANSLATE2 = "ours float32", "CTranslate2 float32"
GOALS = {"greedy": "1.2", "beam 5": "1.1"}
# Name -> CTranslate2's type of computation, and its quantization of the weights.
TYPES = {CTRANSLATE2: ("float32", None), "CTranslate2 bf16": ("bfloat16", None), "CTranslate2 int8": ("int8", "int8")}


def contenders(setting: Setting) -> Contenders:
    """Return what answers the test split of the config, by greedy search and by beam search."""

    def answer(*what: Any) -> Callable[[], Numbers]:
        return partial(setting.measure, [*what], script=SCRIPT)

    turns: Contenders = {}
    for search, beams in SEARCHES.items():
        ways: dict[str, Callable[[], Numbers]] = {
            REFERENCE: answer("alone", beams),
            "stock float32": answer("by_stock", beams),
            OURS: answer("decode", beams, "float32"),
            "ours bf16": answer("decode", beams, "bf16"),
        }
        for name, (dtype, quantization) in TYPES.items():
            ways[name] = partial(take_turn_of_ctranslate2, setting, beams, dtype, quantization)
        reference = {"reference": f"{REFERENCE}, {search}"}
        for name, way in ways.items():
            turns[f"{name}, {search}"] = way if name == REFERENCE else partial(with_reference, way, reference)
    return turns


def ratios() -> list[Ratio]:
    return [
        Ratio(
            f"{search}: {above} / {below}",
            Measure(f"{above}, {search}", RATE),
            (Measure(f"{below}, {search}", RATE),),
            goal=GOALS[search] if (above, below) == (OURS, CTRANSLATE2) else "",
        )
        for search in SEARCHES
        for above, below in (
            (OURS, CTRANSLATE2),
            (OURS, "stock float32"),
            ("ours bf16", OURS),
            ("ours bf16", "CTranslate2 int8"),
        )
    ]


def with_reference(way: Callable[[], Numbers], reference: Numbers) -> Numbers:
    return way() | reference


def take_turn_of_ctranslate2(setting: Setting, beams: int, dtype: str, quantization: str | None) -> Numbers:
    """Try threads and batches, in a process with MKL and in one without, and measure the fastest."""
    what: list[Any] = [beams, dtype, quantization]
    tried = {mkl: setting.measure(["try", *what], script=CTRANSLATE2_SCRIPT, CT2_USE_MKL=mkl) for mkl in ("0", "1")}
    mkl = max(tried, key=lambda mkl: tried[mkl][RATE])
    if (best := tried[mkl]["best"]) is None:
        return {"not measured": f"CTranslate2 has no {dtype} for this processor"}
    numbers = setting.measure(["decode", *what, *best], script=CTRANSLATE2_SCRIPT, CT2_USE_MKL=mkl)
    threads, threads_each, batch = best
    return numbers | {"best": f"{threads} x {threads_each} threads, {batch} sentences a batch, CT2_USE_MKL={mkl}"}
