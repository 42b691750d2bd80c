"""Make one measurement of training, and print it as JSON; scripts/benchmark.py starts a process for each."""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from datasets import Dataset
from torch.profiler import ProfilerActivity, profile
from transformers import (
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)

from pipeline.cli import print_errors
from pipeline.config import Config
from pipeline.data.batch_loader import BatchLoader
from pipeline.data.lanes import Lanes
from pipeline.data.splits import open_split
from pipeline.exporting.stock import make_stock
from pipeline.memory import peak_memory
from pipeline.models.configuration_seq2seq import Seq2SeqTransformerConfig
from pipeline.models.modeling_seq2seq import Seq2SeqTransformerForConditionalGeneration
from pipeline.setup.loader_setup import build_loader
from pipeline.tasks.config_loading import load_config
from pipeline.tasks.registry import get_task
from pipeline.training.arguments import training_arguments
from scripts.machine import describe_machine, matrix_product_rate, synchronize, used_instructions

STOCK_ROWS = 128  # of a batch
MEMORY_VOCABULARY, MEMORY_SHAPE = 32_000, (128, 32)  # 4,096 target tokens
LOADER_SECONDS = 10.0


def stock(arguments: argparse.Namespace, is_grouped: bool) -> None:
    """Train with a Seq2SeqTrainer as in transformers' documentation, on the same data, tokenizer, size and recipe."""
    config = load_config(arguments.config, arguments.overrides)
    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer.path)
    features = encode(config, tokenizer)
    torch.manual_seed(0)
    model = make_stock(Seq2SeqTransformerConfig(vocab_size=len(tokenizer), **config.model))
    watch = Stopwatch(int(config.training["logging_steps"]))
    shared = ("learning_rate", "lr_scheduler_type", "warmup_steps", "adam_beta2", "label_smoothing_factor", "bf16")
    args = Seq2SeqTrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=STOCK_ROWS,
        max_steps=config.training["max_steps"],
        train_sampling_strategy="group_by_length" if is_grouped else "random",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=arguments.device == "cpu",
        **{name: config.training[name] for name in shared if name in config.training},
    )
    collator = DataCollatorForSeq2Seq(tokenizer, model=model)
    Seq2SeqTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(features),
        data_collator=lambda rows: watch.count(collator(rows)),
        callbacks=[watch],
    ).train()


class Stopwatch(TrainerCallback):
    """Prints target tokens a second over as many steps at a time as our logs, and the share of places with a token."""

    def __init__(self, steps: int):
        self.steps = steps
        self.targets: list[int] = []  # target tokens of the batches collated so far
        self.tokens = self.places = 0  # of both sides

    def count(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.targets.append(int(batch["labels"].ne(-100).sum()))
        self.tokens += int(batch["attention_mask"].sum()) + self.targets[-1]
        self.places += batch["input_ids"].numel() + batch["labels"].numel()
        return batch

    def on_train_begin(self, args, state, control, **kwargs):
        self.begin = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.steps:
            return
        synchronize(args.device.type)
        now = time.perf_counter()
        rate = sum(self.targets[state.global_step - self.steps : state.global_step]) / (now - self.begin)
        self.begin = now
        print({"items_per_second": rate, "share of places with a token": self.tokens / self.places}, flush=True)


def build(config: Config, lanes: int = 1) -> tuple[BatchLoader, Seq2SeqTransformerConfig]:
    """Make the loader and the model's config of a run."""
    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer.path)
    model = Seq2SeqTransformerConfig(vocab_size=len(tokenizer), **config.model)
    task = get_task(config.task).from_model(tokenizer, model, config)
    rows = open_split(config.data, config.data.train, task.columns(config), lanes)
    return build_loader(config, training_arguments(config), task, {"": rows}, lanes), model


def encode(config: Config, tokenizer: Any) -> list[dict[str, list[int]]]:
    """Return the ids of the training pairs."""
    rows = [*open_split(config.data, config.data.train, get_task(config.task).columns(config))]
    sources, targets = ([row[name] for row in rows] for name in ("source", "target"))
    ids = tokenizer(sources)["input_ids"], tokenizer(targets)["input_ids"]
    return [{"input_ids": source, "labels": target} for source, target in zip(*ids, strict=True)]


def describe_batches(arguments: argparse.Namespace, count: int = 200) -> tuple[float, float]:
    """Return, for our batches, the share of places that hold a token, and the operations of a step per target token."""
    batches, model = build(load_config(arguments.config, arguments.overrides))
    sources = targets = places = 0
    for _, batch in zip(range(count), iter(batches), strict=False):
        sources += int(batch["input_ids"].ne(model.pad_token_id).sum())
        targets += int(batch["labels"].ne(-100).sum())
        places += batch["input_ids"].numel() + batch["labels"].numel()
    return (sources + targets) / places, count_operations(model, sources, targets) / targets


def count_operations(model: Seq2SeqTransformerConfig, sources: int, targets: int) -> int:
    """Count the operations of the matrix products in a training step with so many source and target tokens.

    Two operations for each weight that a token meets, and three times that with the backward pass (Kaplan et al. 2020,
    https://arxiv.org/abs/2001.08361, section 2.1). Attention's own products are not counted.
    """
    square, feed_forward = model.d_model**2, 2 * model.d_model * model.ffn_dim
    per_source_token = model.encoder_layers * (4 * square + feed_forward) + model.decoder_layers * 2 * square
    per_target_token = model.decoder_layers * (6 * square + feed_forward) + model.vocab_size * model.d_model
    return 6 * (per_source_token * sources + per_target_token * targets)


def load_batches(arguments: argparse.Namespace, streaming: bool) -> float:
    """Measure the tokens a second of a loader as training has it, over whole passes after the first."""
    workers = ["training.dataloader_num_workers=2", f"data.streaming={str(streaming).lower()}"]
    config = load_config(arguments.config, [*arguments.overrides, *workers])
    loader, model = build(config)
    tokens = passes = 0
    begin = now = time.perf_counter()
    for batch in loader:
        if loader.lanes.progress().pass_index > passes:
            passes, now = passes + 1, time.perf_counter()
            if passes == 1:
                tokens, begin = 0, now
            elif now - begin >= LOADER_SECONDS:
                break
        tokens += int(batch["input_ids"].ne(model.pad_token_id).sum() + batch["labels"].ne(-100).sum())
    return tokens / (now - begin)


def prepare_alone(arguments: argparse.Namespace, folder: str, streaming: bool, ranks: int) -> float:
    """Measure the target tokens that rank 0 of some ranks, with a lane each, prepares in a second of the processor.

    Over whole passes of its lane, as many rows as two passes of all lanes have, without the first.
    """
    config = load_config(
        arguments.config,
        [*arguments.overrides, f"data.path={folder}", "data.options={}", f"data.streaming={streaming}"],
    )
    loader, _ = build(config, ranks)
    loader.lanes = Lanes(loader.lanes.make_stream, ranks, rank=0, world_size=ranks)
    tokens = passes = 0
    begin = now = time.process_time()
    for batch in loader:
        if loader.lanes.progress().pass_index > passes:
            passes, now = passes + 1, time.process_time()
            if passes == 1:
                tokens, begin = 0, now
            elif passes > 2 * ranks:
                break
        tokens += int(batch["labels"].ne(-100).sum())
    return tokens / (now - begin)


def encode_alone(arguments: argparse.Namespace) -> float:
    """Measure the tokens a second of the tokenizer, which uses as many cores as RAYON_NUM_THREADS says."""
    config = load_config(arguments.config, arguments.overrides)
    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer.path).backend_tokenizer
    rows = open_split(config.data, config.data.train, get_task(config.task).columns(config))
    texts = [row[name] for row in rows for name in ("source", "target")]
    begin = time.perf_counter()
    tokens = sum(len(encoding.ids) for encoding in tokenizer.encode_batch(texts))
    return tokens / (time.perf_counter() - begin)


def step_memory(arguments: argparse.Namespace, name: str) -> int:
    """Measure the peak of bytes allocated in the second of two training steps, less what was there before it.

    So weights, gradients and optimizer state do not count. In the type that training uses: bf16 on a GPU.
    """
    config = Seq2SeqTransformerConfig(
        vocab_size=MEMORY_VOCABULARY, **load_config(arguments.config, arguments.overrides).model
    )
    model = make_stock(config) if name == "stock" else Seq2SeqTransformerForConditionalGeneration(config)
    model.train().to(arguments.device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(4, MEMORY_VOCABULARY, MEMORY_SHAPE, device=arguments.device)

    def step() -> None:
        with torch.autocast(arguments.device, torch.bfloat16, enabled=arguments.device == "cuda"):
            loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss
        loss.backward()

    step()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    return peak_allocated(step, torch.device(arguments.device))


def peak_allocated(step: Callable[[], None], device: torch.device) -> int:
    """Return the peak of bytes that tensors take while a step runs, beyond those that were there.

    On a CPU they are counted one by one, as resident memory also holds what an allocator keeps, and differs each time.
    What was there before is not seen there when it is freed: a step that frees it may need less than this.
    """
    if device.type == "cuda":
        with peak_memory(device) as read_peak:
            step()
            return read_peak()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events))  # less than 0 where something is freed


Measurements = Mapping[str, Callable[..., Any]]
MEASUREMENTS: Measurements = {
    "describe_machine": lambda arguments: {"machine": describe_machine(arguments.device) | used_instructions()},
    "matrix_product_rate": lambda arguments, dtype: matrix_product_rate(arguments.device, dtype),
    "describe_batches": describe_batches,
    "stock": stock,
    "step_memory": step_memory,
    "load_batches": load_batches,
    "prepare_alone": prepare_alone,
    "encode_alone": encode_alone,
}


def main(measurements: Measurements) -> int:
    """Make the measurement that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--checkpoint")
    parser.add_argument("--what", type=json.loads, required=True, help='JSON: ["name of a measurement", option, ...]')

    def measure(arguments: argparse.Namespace) -> None:
        name, *options = arguments.what
        print(json.dumps(measurements[name](arguments, *options)))

    return print_errors(measure, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main(MEASUREMENTS))
