"""What rows cost on their way to a batch, and the memory of a training step."""

import json
from functools import partial

from pipeline.data.splits import open_split
from pipeline.tasks.config_loading import load_config
from pipeline.tasks.registry import get_task
from scripts.benchmark_setting import Contenders, Measure, Numbers, Ratio, Setting

RATE, CPU_RATE, PEAK = "tokens a second", "target tokens a second of the processor", "peak of a step, MB"
ENCODING = "only encode_batch, one core"
RANKS = (1, 4, 16)
SOURCES = {"local files": (1, False), "64 streamed files": (64, True), "one streamed file": (1, True)}


def memory_contenders(setting: Setting) -> Contenders:
    """Return whose training step is measured: 4,096 target tokens, a vocabulary of 32,000, without the weights."""

    def take_turn(name: str) -> Numbers:
        return {PEAK: setting.measure(["step_memory", name]) / 1e6}

    return {name: partial(take_turn, name) for name in ("stock", "ours")}


def memory_ratios() -> list[Ratio]:
    return [Ratio("ours / stock", Measure("ours", PEAK), (Measure("stock", PEAK),), goal="<= 0.25")]


def contenders(setting: Setting) -> Contenders:
    """Return what makes tokens: the loader with two workers, and only the tokenizer on one core."""

    def take_turn(what: list) -> Numbers:
        return {RATE: setting.measure(what, setting.training_overrides(), RAYON_NUM_THREADS="1")}

    return {
        ENCODING: partial(take_turn, ["encode_alone"]),
        "two workers": partial(take_turn, ["load_batches", False]),
        "two workers, streaming": partial(take_turn, ["load_batches", True]),
    }


def ratios() -> list[Ratio]:
    return [
        Ratio(f"{name} / {ENCODING}", Measure(name, RATE), (Measure(ENCODING, RATE),), goal="1.13")
        for name in ("two workers", "two workers, streaming")
    ]


def lanes_contenders(setting: Setting) -> Contenders:
    """Return rank 0 of 1, 4 and 16 ranks, on the training rows as one file, and as 64 files."""

    def take_turn(count: int, streaming: bool, ranks: int) -> Numbers:
        folder = setting.folder / str(count)
        if not folder.is_dir():
            write_files(setting, count)
        what = ["prepare_alone", str(folder), streaming, ranks]
        return {CPU_RATE: setting.measure(what, setting.training_overrides(), TOKENIZERS_PARALLELISM="false")}

    return {
        f"{name}, {ranks} ranks": partial(take_turn, count, streaming, ranks)
        for name, (count, streaming) in SOURCES.items()
        for ranks in RANKS
    }


def lanes_ratios() -> list[Ratio]:
    """Compare what a token of its own costs rank 0."""
    return [
        Ratio(
            f"cost, {name}: {ranks} ranks / one",
            Measure(f"{name}, 1 ranks", CPU_RATE),
            (Measure(f"{name}, {ranks} ranks", CPU_RATE),),
        )
        for name in SOURCES
        for ranks in RANKS[1:]
    ]


def write_files(setting: Setting, count: int) -> None:
    """Write the training rows, dealt out to so many files of a folder of that name."""
    config = load_config(setting.config, setting.overrides)
    rows = open_split(config.data, config.data.train, get_task(config.task).columns(config))
    lines = [json.dumps({config.data.source: row["source"], config.data.target: row["target"]}) + "\n" for row in rows]
    (setting.folder / str(count)).mkdir()
    for number in range(count):
        (setting.folder / str(count) / f"train-{number:02}.jsonl").write_text("".join(lines[number::count]))
