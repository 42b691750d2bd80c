"""Measure this project beside stock transformers: a Seq2SeqTrainer with Marian or Pegasus, and its generate.

    scripts/benchmark.py CONFIG [section.key=value ...] --parts training memory loader lanes start generation

What is compared takes turns (A B C A B C ...), with a new process for every turn; ratios are of medians. The machine's
rate of matrix products is measured in every round, and operations are counted only for real tokens.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipeline.cli import print_errors
from pipeline.commands.arguments import path, positive
from pipeline.data.splits import open_split
from pipeline.errors import ConfigError, explain_path
from pipeline.setup.tokenizer_setup import prepare_tokenizer
from pipeline.tasks.config_loading import load_config
from pipeline.tasks.registry import get_task
from pipeline.training.checkpoints import list_checkpoints

SCRIPTS = Path(__file__).parent
STEPS_A_LOG = 10
BEAMS = (1, 5)
RANKS = (1, 4, 16)
FILES = (1, 64)
ON_GPU = ["training.bf16=true", "training.torch_compile=true", "data.packing=true"]  # the last two only for ours
Rates = dict[str, list[float]]


# ---- parts; they return numbers by name, for the table and the JSON file


def training(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure target tokens a second, without padding."""
    overrides = prepare(arguments, folder)
    names: dict[str, list | None] = {
        "stock": ["stock", False],
        "stock, grouped by length": ["stock", True],
        "ours": None,
    }
    rates: Rates = {name: [] for name in names}
    memory: Rates = {name: [] for name in names}
    peaks = []
    for _ in range(arguments.rounds):
        peaks.append(measure(arguments, ["matrix_product_rate"], overrides))
        for name, child in names.items():
            result = train_ours(arguments, overrides, folder) if child is None else measure(arguments, child, overrides)
            rates[name].append(statistics.median(result["rates"]))
            memory[name].append(result["peak"])
    medians = {name: statistics.median(values) for name, values in rates.items()}
    padding, operations = measure(arguments, ["describe_batches"], overrides)
    share = medians["ours"] * operations / statistics.median(peaks)
    return {
        "target tokens a second": rates,
        "peak memory of the process, bytes": memory,
        "matrix products, operations a second": peaks,
        "ours / stock": medians["ours"] / medians["stock"],
        "ours / stock, grouped by length": medians["ours"] / medians["stock, grouped by length"],
        "share of the matrix-product rate": share,
        "operations a target token": operations,
        "share of places that hold a token": padding,
    }


def memory(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure the memory of a training step of 4,096 target tokens with a vocabulary of 32,000, without the weights."""
    needs = {
        name: [measure(arguments, ["step_memory", name], arguments.overrides) for _ in range(arguments.rounds)]
        for name in ("stock", "ours")
    }
    return {
        "peak of a step, bytes": needs,
        "ours / stock": statistics.median(needs["ours"]) / statistics.median(needs["stock"]),
    }


def loader(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure source and target tokens a second: of the loader with two workers, and of only encoding on one core."""
    overrides = prepare(arguments, folder)
    children: dict[str, list] = {
        "only encode_batch, one core": ["encode_alone"],
        "two workers": ["load_batches", False],
        "two workers, streaming": ["load_batches", True],
    }
    rates: Rates = {name: [] for name in children}
    for _ in range(arguments.rounds):
        for name, child in children.items():
            rates[name].append(measure(arguments, child, overrides, RAYON_NUM_THREADS="1"))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    only_encoding, *ours = medians.values()
    return {
        "tokens a second": rates,
        "share of only encode_batch": dict(
            zip(list(medians)[1:], [rate / only_encoding for rate in ours], strict=True)
        ),
    }


def lanes(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure what a target token of its own costs rank 0 of 4 and 16 ranks, in time of the processor, beside one rank.

    On the training rows as one file, and as 64 files.
    """
    overrides = prepare(arguments, folder)
    config = load_config(arguments.config, overrides)
    rows = open_split(config.data, config.data.train, get_task(config.task).columns(config))
    lines = [json.dumps({config.data.source: row["source"], config.data.target: row["target"]}) + "\n" for row in rows]
    for count in FILES:
        (folder / str(count)).mkdir(exist_ok=True)
        for number in range(count):
            (folder / str(count) / f"train-{number:02}.jsonl").write_text("".join(lines[number::count]))
    cases = {
        "local files": (1, False),
        "64 streamed files": (64, True),
        "one streamed file": (1, True),
    }
    rates: dict[str, Rates] = {name: {str(ranks): [] for ranks in RANKS} for name in cases}
    for _ in range(arguments.rounds):
        for name, (count, streaming) in cases.items():
            for ranks in RANKS:
                child = ["prepare_alone", str(folder / str(count)), streaming, ranks]
                rates[name][str(ranks)].append(measure(arguments, child, overrides, TOKENIZERS_PARALLELISM="false"))
    medians = {name: {ranks: statistics.median(values) for ranks, values in of.items()} for name, of in rates.items()}
    return {
        "target tokens a second of rank 0's processor, by ranks": rates,
        "cost of a token / that with one rank": {
            f"{name}, {ranks} ranks": of["1"] / rate
            for name, of in medians.items()
            for ranks, rate in of.items()
            if ranks != "1"
        },
    }


def start(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure the seconds from the command to the first step, beside those of only the imports."""
    overrides = [*prepare(arguments, folder), "training.logging_steps=1", "training.max_steps=1"]
    tokenizer = next(override for override in overrides if override.startswith("tokenizer.path="))
    train = [str(SCRIPTS / "train.py"), arguments.config]
    commands = {
        "import torch, transformers": ["-c", "import torch, transformers; print('done')"],
        "and transformers.Seq2SeqTrainer": [
            "-c",
            "import torch, transformers; transformers.Seq2SeqTrainer; print('done')",
        ],
        "first step": [*train, *overrides],
        "first step, the tokenizer trained before it": [
            *train,
            *(override for override in overrides if override != tokenizer),
        ],
    }
    times: Rates = {name: [] for name in commands}
    for _ in range(arguments.rounds):
        for name, command in commands.items():
            output = f"training.output_dir={tempfile.mkdtemp(dir=folder)}"
            times[name].append(seconds_to_output(command if command[0] == "-c" else [*command, output]))
    medians = {name: statistics.median(values) for name, values in times.items()}
    imports, trainer, *_ = medians.values()
    return {
        "seconds": times,
        "first step / import torch, transformers": medians["first step"] / imports,
        "first step / and transformers.Seq2SeqTrainer": medians["first step"] / trainer,
    }


def generation(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure generated tokens a second on the test split, by a checkpoint and by the stock model with its weights."""
    result: dict[str, Any] = {}
    for beams in BEAMS:
        rates: Rates = {"stock": [], "ours": []}
        for _ in range(arguments.rounds):
            for name in rates:
                last = measure(arguments, ["generate", name, beams], arguments.overrides)
                rates[name].append(last["rate"])
        together = last["ids"]  # ours, as they come last
        one_by_one = measure(arguments, ["generate", "alone", beams], arguments.overrides)["ids"]
        pairs = [pair for pair in zip(together, one_by_one, strict=True) if pair[0] != pair[1]]
        result[f"{beams} beams"] = {
            "tokens a second": rates,
            "ours / stock": statistics.median(rates["ours"]) / statistics.median(rates["stock"]),
            "sentences": len(together),
            "sentences whose ids differ when generated one by one": len(pairs),
            **{f"  {number}": f"{ours} | one by one: {other}" for number, (ours, other) in enumerate(pairs, start=1)},
        }
    return result


PARTS: dict[str, Callable[[argparse.Namespace, Path], dict[str, Any]]] = {
    "training": training,
    "memory": memory,
    "loader": loader,
    "lanes": lanes,
    "start": start,
    "generation": generation,
}


# ---- what the parts measure


def prepare(arguments: argparse.Namespace, folder: Path) -> list[str]:
    """Return the overrides for all runs: one tokenizer, no evaluation, and no checkpoint but the last."""
    config = load_config(arguments.config, arguments.overrides)
    path = folder / "tokenizer"
    if not path.is_dir():
        rows = open_split(config.data, config.data.train, get_task(config.task).columns(config))
        tokenizer = prepare_tokenizer(config, iter(rows), None)
        assert tokenizer is not None  # as the task has texts
        tokenizer.save_pretrained(path)
    return [
        *arguments.overrides,
        f"tokenizer.path={path}",
        "data.validation=null",
        "data.test=null",
        "training.eval_strategy=no",
        "training.load_best_model_at_end=false",
        "training.report_to=none",
        f"training.max_steps={arguments.steps}",
        f"training.save_steps={arguments.steps}",
        f"training.logging_steps={STEPS_A_LOG}",
        *(["training.use_cpu=true"] if arguments.device == "cpu" else ON_GPU),
    ]


def train_ours(arguments: argparse.Namespace, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Run scripts/train.py itself; its first log, which holds the start, is left out."""
    output = Path(tempfile.mkdtemp(dir=folder))
    peak = execute([str(SCRIPTS / "train.py"), arguments.config, *overrides, f"training.output_dir={output}"])[1]
    return {"rates": read_logs(output, "items_per_second")[1:], "peak": peak}


def read_logs(output: Path, name: str) -> list[float]:
    """Return what a run logged under a name, up to its last checkpoint."""
    state = json.loads((list_checkpoints(output)[0] / "trainer_state.json").read_text())
    return [log[name] for log in state["log_history"] if name in log]


def seconds_to_output(command: list[str]) -> float:
    """Return the seconds until a script prints its first log, or a `-c` command its first line."""
    begin = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if command[0] == "-c" or "'loss'" in line:
                seconds = time.perf_counter() - begin
                process.stdout.read()
                return seconds
    raise SystemExit(f"{' '.join(command)} failed")


# ---- processes and output


def measure(arguments: argparse.Namespace, what: list, overrides: list[str], **environment: str) -> Any:
    """Call a function of scripts/benchmark_cases.py in a new process; a dict gets the process's peak memory as well."""
    command = [str(SCRIPTS / "benchmark_cases.py"), arguments.config, *overrides, "--what", json.dumps(what)]
    command += ["--device", arguments.device]
    if arguments.checkpoint:
        command += ["--checkpoint", arguments.checkpoint]
    output, peak = execute(command, environment)
    result = json.loads(output.splitlines()[-1])
    return result | {"peak": peak} if isinstance(result, dict) else result


def execute(command: list[str], environment: dict[str, str] | None = None) -> tuple[str, int]:
    """Run a Python script; return its standard output, and the peak of its resident memory in bytes."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, *command], stdout=output, stderr=errors, env={**os.environ, **(environment or {})}
        )
        _, status, usage = os.wait4(process.pid, 0)
        output.seek(0)
        errors.seek(0)
        if status:
            message = errors.read()[-3000:]
            last = (message.splitlines() or [""])[-1]
            if last.startswith("error: "):  # the user's to fix
                raise ConfigError(last.removeprefix("error: "))
            raise SystemExit(f"{' '.join(command)} failed:\n{message}")
        return output.read(), usage.ru_maxrss * 1024


def print_table(part: str, numbers: dict[str, Any], indent: str = "  ") -> None:
    print(f"{indent[2:]}{part}")
    for name, value in numbers.items():
        if isinstance(value, dict):
            print_table(name, value, indent + "  ")
        elif isinstance(value, list):
            print(f"{indent}{name:<42} {statistics.median(value):>16,.6g}   {min(value):,.6g} to {max(value):,.6g}")
        else:
            print(f"{indent}{name:<42} {f'{value:,.4g}' if isinstance(value, int | float) else value:>16}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file of a translation, such as configs/translation_multi30k_en_fr.yaml")
    parser.add_argument("overrides", nargs="*", help="section.key=value, the value in YAML")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=positive, metavar="N", default=3, help="turns that everything takes")
    parser.add_argument("--steps", type=positive, metavar="N", default=60, help="of every training")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--checkpoint", help="a run of this config, for the part generation")
    parser.add_argument("--output", type=path, default=Path("benchmark.json"))
    arguments = parser.parse_intermixed_args(argv)
    if "generation" in arguments.parts and not arguments.checkpoint:
        parser.error("the part generation needs --checkpoint: a run of this config")
    return print_errors(measure_parts, arguments)


def measure_parts(arguments: argparse.Namespace) -> None:
    """Measure part by part, and print and save what there is after each."""
    if (task := load_config(arguments.config, arguments.overrides).task) != "sequence_to_sequence":
        raise ConfigError(f"task: {task!r} has no counterpart here; take a config with task: sequence_to_sequence")
    save({}, arguments.output)  # so that a wrong path costs no time
    results: dict[str, Any] = {"machine": describe_machine(arguments)}
    print_table("machine", results["machine"])
    with tempfile.TemporaryDirectory() as folder:
        for part in arguments.parts:
            results[part] = PARTS[part](arguments, Path(folder))
            print_table(part, results[part])
            sys.stdout.flush()
            save(results, arguments.output)


def describe_machine(arguments: argparse.Namespace) -> dict[str, Any]:
    """Name processor, device and versions, in a new process, as for all measurements."""
    machine = measure(arguments, ["describe_machine"], arguments.overrides)
    machine.pop("peak")
    return machine


def save(results: dict[str, Any], output: Path) -> None:
    with explain_path(f"--output {output}"):
        output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
