"""Measures this project beside stock transformers: a Seq2SeqTrainer with MarianMTModel, and its generate.

    scripts/benchmark.py CONFIG [section.key=value ...] --parts training memory loader start generation

Whatever is compared takes turns (A B C A B C ...), each turn a process of its own; ratios are of medians. The machine's
rate of matrix products is measured in every round, and operations are counted for real tokens alone.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # run from a clone, whether installed or not

import torch
from datasets import Dataset
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    GenerationConfig,
    MarianConfig,
    MarianMTModel,
    PreTrainedModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)

from pipeline.building import load_or_train_tokenizer
from pipeline.config import Config, load
from pipeline.models.configuration_seq2seq import Seq2SeqTransformerConfig
from pipeline.models.modeling_seq2seq import Seq2SeqTransformerForConditionalGeneration
from pipeline.models.transformer_layers import sinusoidal_positions
from pipeline.run import build_loader, training_arguments
from pipeline.sources import read
from pipeline.tasks.tables import find

SCRIPTS = Path(__file__).parent
STOCK_ROWS = {"training": 128, "generation": 32}  # of a batch
STEPS_A_LOG = 10
MEMORY_VOCABULARY, MEMORY_SHAPE = 32_000, (128, 32)  # 4,096 target tokens
STANDARD_BEAMS = 5
Rates = dict[str, list[float]]


def marian(config: Seq2SeqTransformerConfig, positions: int = 512) -> MarianMTModel:
    """transformers' Marian of the same size; its layers are post-norm."""
    return MarianMTModel(
        MarianConfig(
            vocab_size=config.vocab_size,
            d_model=config.d_model,
            encoder_layers=config.encoder_layers,
            decoder_layers=config.decoder_layers,
            encoder_attention_heads=config.attention_heads,
            decoder_attention_heads=config.attention_heads,
            encoder_ffn_dim=config.ffn_dim,
            decoder_ffn_dim=config.ffn_dim,
            activation_function=config.activation_function,
            dropout=float(config.dropout),
            scale_embedding=True,
            pad_token_id=config.pad_token_id,
            eos_token_id=config.eos_token_id,
            decoder_start_token_id=config.decoder_start_token_id,
            forced_eos_token_id=None,
            max_position_embeddings=positions,
        )
    )


def to_marian(model: Seq2SeqTransformerForConditionalGeneration, positions: int = 512) -> MarianMTModel:
    """Marian with the weights of a post-norm `model`."""
    names = {
        "self_attn_residual.norm": "self_attn_layer_norm",
        "cross_attn_residual.norm": "encoder_attn_layer_norm",
        "feed_forward_residual.norm": "final_layer_norm",
        "feed_forward.": "",
        "cross_attn.": "encoder_attn.",
    }
    state = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        state[name if name.startswith("lm_head") else f"model.{name}"] = tensor
    state["model.shared.weight"] = model.encoder.embed_tokens.weight
    state["final_logits_bias"] = torch.zeros(1, model.config.vocab_size)
    for side in ("encoder", "decoder"):  # Marian lays sines and cosines side by side instead of in turn
        state[f"model.{side}.embed_positions.weight"] = sinusoidal_positions(
            torch.arange(positions), model.config.d_model
        )
    converted = marian(model.config, positions).eval()
    converted.load_state_dict(state, strict=True)
    return converted


# ---- parts; each gives numbers by name, for the table and the JSON file


def training(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Target tokens a second, padding not counted."""
    own = prepare(arguments, folder)
    names = {"stock": ["stock", False], "stock, grouped by length": ["stock", True], "ours": None}
    rates: Rates = {name: [] for name in names}
    memory: Rates = {name: [] for name in names}
    peaks = []
    for _ in range(arguments.rounds):
        peaks.append(matrix_product_rate(arguments.device))
        for name, child in names.items():
            result = train_ours(arguments, own, folder) if child is None else run_child(arguments, child, own)
            rates[name].append(statistics.median(result["rates"]))
            memory[name].append(result["peak"])
    medians = {name: statistics.median(values) for name, values in rates.items()}
    padding, operations = describe_batches(load(arguments.config, own))
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
    """What a training step needs beside what lies there before it, in bytes."""
    needs = {
        name: [run_child(arguments, ["step_memory", name], []) for _ in range(arguments.rounds)]
        for name in ("stock", "ours")
    }
    return {
        "vocabulary": MEMORY_VOCABULARY,
        "target tokens a batch": MEMORY_SHAPE[0] * MEMORY_SHAPE[1],
        "peak of a step, bytes": needs,
        "ours / stock": statistics.median(needs["ours"]) / statistics.median(needs["stock"]),
    }


PARTS: dict[str, Callable[[argparse.Namespace, Path], dict[str, Any]]] = {"training": training, "memory": memory}


# ---- what the parts measure


def prepare(arguments: argparse.Namespace, folder: Path) -> list[str]:
    """Overrides under which everything runs: one tokenizer, and neither evaluation nor checkpoints but the last."""
    config = load(arguments.config, arguments.overrides)
    path = folder / "tokenizer"
    if not path.is_dir():
        rows = read(config.data, config.data.train, find(config.task).task.columns(config.data))
        load_or_train_tokenizer(config, iter(rows), None).save_pretrained(path)
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
        f"training.use_cpu={str(arguments.device == 'cpu').lower()}",
    ]


def train_ours(arguments: argparse.Namespace, overrides: list[str], folder: Path) -> dict[str, Any]:
    """A run of scripts/train.py itself; its first log, which holds the start, is left out."""
    output = Path(tempfile.mkdtemp(dir=folder))
    peak = execute([str(SCRIPTS / "train.py"), arguments.config, *overrides, f"training.output_dir={output}"])[1]
    state = json.loads((output / f"checkpoint-{arguments.steps}" / "trainer_state.json").read_text())
    logs = [entry["items_per_second"] for entry in state["log_history"] if "items_per_second" in entry]
    return {"rates": logs[1:], "peak": peak}


def stock(arguments: argparse.Namespace, overrides: list[str], is_grouped: bool) -> dict[str, Any]:
    """A Seq2SeqTrainer as transformers' documentation has it, on the same data, tokenizer, size and recipe."""
    config = load(arguments.config, overrides)
    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer.path)
    features = encode(config, tokenizer)
    torch.manual_seed(0)
    model = marian(Seq2SeqTransformerConfig(vocab_size=len(tokenizer), **config.model))
    watch = Stopwatch()
    chosen = ("learning_rate", "lr_scheduler_type", "warmup_steps", "adam_beta2", "label_smoothing_factor", "bf16")
    args = Seq2SeqTrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=STOCK_ROWS["training"],
        max_steps=arguments.steps,
        train_sampling_strategy="group_by_length" if is_grouped else "random",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=arguments.device == "cpu",
        **{name: config.training[name] for name in chosen if name in config.training},
    )
    collator = DataCollatorForSeq2Seq(tokenizer, model=model)
    Seq2SeqTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(features),
        data_collator=lambda rows: watch.count(collator(rows)),
        callbacks=[watch],
    ).train()
    return {"rates": watch.rates}


class Stopwatch(TrainerCallback):
    """Target tokens a second, of as many steps at a time as a log of ours has; the first of them are left out."""

    def __init__(self):
        self.tokens: list[int] = []  # of each batch, as far as they are collated
        self.times: list[float] = []

    def count(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.tokens.append(int(batch["labels"].ne(-100).sum()))
        return batch

    def on_step_end(self, args, state, control, **kwargs):
        if args.device.type == "cuda":
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())

    @property
    def rates(self) -> list[float]:
        ends = range(2 * STEPS_A_LOG, len(self.times) + 1, STEPS_A_LOG)
        return [
            sum(self.tokens[end - STEPS_A_LOG : end]) / (self.times[end - 1] - self.times[end - STEPS_A_LOG - 1])
            for end in ends
        ]


def encode(config: Config, tokenizer: Any, count: int | None = None) -> list[dict[str, list[int]]]:
    """Ids of the training pairs."""
    rows = read(config.data, config.data.train, find(config.task).task.columns(config.data))
    rows = list(rows if count is None else rows.take(count))
    sources, targets = ([row[name] for row in rows] for name in ("source", "target"))
    ids = tokenizer(sources)["input_ids"], tokenizer(targets)["input_ids"]
    return [{"input_ids": source, "labels": target} for source, target in zip(*ids, strict=True)]


def describe_batches(config: Config, count: int = 200) -> tuple[float, float]:
    """Of our batches: the share of places that hold a token, and the operations of a step by its target tokens.

    Two operations for each weight of a matrix product that a token passes, and three times that with the backward pass
    (Kaplan et al. 2020, https://arxiv.org/abs/2001.08361, section 2.1). Attention's own products are not counted.
    """
    args = training_arguments(config)
    entry = find(config.task)
    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer.path)
    model = Seq2SeqTransformerConfig(vocab_size=len(tokenizer), **config.model)
    task = entry.task.of(tokenizer, model, config.data)
    batches = iter(build_loader(config, args, task, read(config.data, config.data.train, task.columns(config.data))))
    sources = targets = places = 0
    for _, batch in zip(range(count), batches, strict=False):
        sources += int(batch["attention_mask"].sum())
        targets += int(batch["labels"].ne(-100).sum())
        places += batch["input_ids"].numel() + batch["labels"].numel()
    square, feed_forward = model.d_model**2, 2 * model.d_model * model.ffn_dim
    a_source = model.encoder_layers * (4 * square + feed_forward) + model.decoder_layers * 2 * square
    a_target = model.decoder_layers * (6 * square + feed_forward) + model.vocab_size * model.d_model
    return (sources + targets) / places, 6 * (a_source * sources / targets + a_target)


def step_memory(arguments: argparse.Namespace, overrides: list[str], name: str) -> int:
    """Bytes that the second of two training steps needs at its peak, beside weights, gradients and optimizer state."""
    config = Seq2SeqTransformerConfig(vocab_size=MEMORY_VOCABULARY, **load(arguments.config).model)
    model = marian(config) if name == "stock" else Seq2SeqTransformerForConditionalGeneration(config)
    model.train().to(arguments.device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(4, MEMORY_VOCABULARY, MEMORY_SHAPE, device=arguments.device)
    needed = 0
    for _ in range(2):
        with peak_memory(arguments.device) as read_peak:
            model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
            needed = read_peak()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    return needed


@contextmanager
def peak_memory(device: str) -> Iterator[Callable[[], int]]:
    """Bytes at the peak since the beginning of the block, beside those in use there."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield lambda: torch.cuda.max_memory_allocated() - before
    else:
        Path("/proc/self/clear_refs").write_text("5")  # makes what is resident now the peak
        before = _resident("VmRSS")
        yield lambda: _resident("VmHWM") - before


def _resident(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def matrix_product_rate(device: str, size: int = 2048, seconds: float = 2.0) -> float:
    """Operations a second of the best of many products of square matrices, in the type that training would use."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    size *= 4 if device == "cuda" else 1
    left, right = torch.randn(2, size, size, device=device, dtype=dtype)
    best = float("inf")
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


# ---- processes and output

CHILDREN: dict[str, Callable[..., Any]] = {"stock": stock, "step_memory": step_memory}


def run_child(arguments: argparse.Namespace, child: list, overrides: list[str]) -> Any:
    """What a function of CHILDREN gives in a process of its own; its peak memory joins a dict."""
    command = [__file__, arguments.config, *overrides, "--device", arguments.device, "--steps", str(arguments.steps)]
    output, peak = execute([*command, "--child", json.dumps(child)])
    result = json.loads(output.splitlines()[-1])
    return result | {"peak": peak} if isinstance(result, dict) else result


def execute(command: list[str]) -> tuple[str, int]:
    """Standard output of a Python script, and the peak of its resident memory in bytes."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen([sys.executable, *command], stdout=output, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        output.seek(0)
        errors.seek(0)
        if status:
            raise SystemExit(f"{' '.join(command)} failed:\n{errors.read()[-3000:]}")
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file of a translation, such as configs/translation_multi30k_en_fr.yaml")
    parser.add_argument("overrides", nargs="*", help="section.key=value, the value in YAML")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3, help="turns that everything takes")
    parser.add_argument("--steps", type=int, default=60, help="of every training")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--output", type=Path, default=Path("benchmark.json"))
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, *options = arguments.child
        print(json.dumps(CHILDREN[name](arguments, arguments.overrides, *options)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        results = {}
        for part in arguments.parts:
            results[part] = PARTS[part](arguments, Path(folder))
            print_table(part, results[part])
            arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
