"""The parts of scripts/check_gpu.py: each fills in figures, and raises Failed or NotPossible with the reason.

The first parts need only torch and transformers; those that read data import the rest of the project when they run.
"""

import argparse
import copy
import io
import itertools
import json
import os
import random
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer

from pipeline.models.configuration_seq2seq import Seq2SeqTransformerConfig
from pipeline.models.modeling_seq2seq import IGNORED
from pipeline.models.modeling_seq2seq import Seq2SeqTransformerForConditionalGeneration as Model
from pipeline.models.transformer_layers import BLOCK
from scripts.machine import describe_machine, matrix_product_rate, synchronize

if TYPE_CHECKING:
    from scripts.benchmark_setting import Setting

CONFIGS, TRAIN = Path(__file__).parents[1] / "configs", Path(__file__).with_name("train.py")
Figures = dict[str, Any]
Pair = tuple[list[int], list[int]]
Batch = dict[str, Tensor]

FIRST_ID, END = 3, 2  # below it are padding, <s> and </s>
LENGTHS = (4, 30)  # of made pairs, about those of captions
SMALL = {"d_model": 256, "encoder_layers": 3, "decoder_layers": 3, "attention_heads": 8, "ffn_dim": 1024}
BASE = {"d_model": 512, "encoder_layers": 6, "decoder_layers": 6, "attention_heads": 8, "ffn_dim": 2048}
TINY = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "attention_heads": 2, "ffn_dim": 64}
VOCABULARY = {"small": 8000, "base": 32_000, "tiny": 100}
GOAL = 3.0  # our training rate beside the stock's, on a GPU


class Failed(Exception):
    """Something does not hold; the message says what."""


class NotPossible(Exception):
    """This machine cannot tell; the message says why."""


@dataclass(frozen=True)
class Setup:
    """Where to check, how large, on which translations (None: made ones), and a folder for what is written."""

    device: str
    is_tiny: bool
    data: Path | None
    folder: Path


def expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Failed(otherwise)


def machine(setup: Setup, figures: Figures) -> None:
    """Name the machine that all figures are of."""
    figures |= describe_machine(setup.device)
    if setup.device == "cuda":
        figures["memory, GB"] = torch.cuda.get_device_properties(0).total_memory / 1e9


# ---- losses and gradients: one step on the same weights and pairs, here and on the CPU in float32


def float32(setup: Setup, figures: Figures) -> None:
    """Only rounding may differ, which is some 1e-6; products in TF32 would differ by 1e-3."""
    model, pairs = make_model(setup), make_pairs(setup)
    expected = step(model, pad(pairs), "cpu")
    compare(figures, "padded", step(model, pad(pairs), setup.device), expected, loss=1e-5, gradient=1e-4)


def bf16(setup: Setup, figures: Figures) -> None:
    """A bf16 has 8 bits: each product is off by up to 0.4 %, which averages out in a loss, and less in a gradient."""
    model, pairs = make_model(setup), make_pairs(setup)
    expected = step(model, pad(pairs), "cpu")
    compare(figures, "padded", step(model, pad(pairs), setup.device, True), expected, loss=1e-2, gradient=0.1)


def packed(setup: Setup, figures: Figures) -> None:
    """Pairs in one sequence, kept apart by a mask, give what padded ones give, by the tolerances of each type."""
    model, pairs = make_model(setup), make_pairs(setup)
    expected = step(model, pad(pairs), "cpu")
    for name, is_bf16, loss, gradient in (("float32", False, 1e-5, 1e-4), ("bf16", True, 1e-2, 0.1)):
        result = step(model, pack(pairs), setup.device, is_bf16)
        compare(figures, f"{name}, packed", result, expected, loss=loss, gradient=gradient)
        padded = step(model, pad(pairs), setup.device, is_bf16)
        compare(figures, f"{name}, packed and padded here", result, padded, loss=loss, gradient=gradient)
    if setup.device == "cpu":
        raise NotPossible("FlexAttention has no gradients on a CPU; the figures are those of a dense mask")


def step(model: Model, batch: Batch, device: str, is_bf16: bool = False) -> tuple[float, Tensor]:
    """Return the loss of a training step, and its gradient as one vector on the CPU."""
    model = copy.deepcopy(model).to(device).train()
    with torch.autocast(device, torch.bfloat16, enabled=is_bf16):
        loss = model(**to_device(batch, device)).loss
    loss.backward()
    gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return float(loss), torch.cat(gradients).cpu().double()


def compare(
    figures: Figures, name: str, result: tuple[float, Tensor], expected: tuple[float, Tensor], **tolerances: float
) -> None:
    """Compare loss and gradient; the latter by the length of the difference, as parts of it are zero but for rounding.

    Args:
        tolerances: of `loss` and `gradient`, relative.
    """
    differences = {
        "loss": abs(result[0] - expected[0]) / abs(expected[0]),
        "gradient": float((result[1] - expected[1]).norm() / expected[1].norm()),
    }
    for quantity, difference in differences.items():
        figures[f"{name}: {quantity} differs by"] = difference
    for quantity, difference in differences.items():
        tolerance = tolerances[quantity]
        expect(difference <= tolerance, f"{name}: the {quantity} differs by {difference:.2g}, more than {tolerance:g}")


def compiling(setup: Setup, figures: Figures) -> None:
    """Packed batches of many sizes are compiled for a few shapes, and for none more once ten were seen.

    The loss is not compiled, so there is a graph before it and one behind. Each is compiled for one size, then for any,
    and again where both sides are of one size in the first batch but not later. torch gives up at 8 for a function.
    """
    from torch._dynamo.utils import counters  # torch has no public count

    tokens = 1200 if setup.is_tiny else 4096
    model = make_model(setup, dropout=0.1).to(setup.device).train()
    compiled = torch.compile(model)
    batches = make_packed_batches(setup, tokens, 20)
    seconds, graphs = [], []
    for _ in range(2):  # the second time nothing is left to compile
        begin = time.perf_counter()
        for batch in batches:
            with torch.autocast(setup.device, torch.bfloat16, enabled=setup.device == "cuda"):
                compiled(**to_device(batch, setup.device)).loss.backward()
            graphs.append(counters["stats"]["unique_graphs"])
        synchronize(setup.device)
        seconds.append(time.perf_counter() - begin)
    figures["sizes of batches"] = len({(batch["input_ids"].shape, batch["labels"].shape) for batch in batches})
    figures["compiled graphs"] = graphs[-1]
    figures["seconds of compiling"] = seconds[0] - seconds[1]
    figures["seconds a step"] = seconds[1] / len(batches)
    expect(graphs[-1] <= 8, f"{graphs[-1]} graphs were compiled, more than 8")
    expect(graphs[-1] == graphs[9], f"{graphs[-1] - graphs[9]} graphs were compiled after the tenth batch")


def new_shapes(setup: Setup, figures: Figures) -> None:
    """A padded batch of a new shape takes at most twice the time of one of a known shape, with attention as we set it.

    cuDNN's attention plans anew for each. What PyTorch chooses by itself is measured before it, on other shapes.
    """
    from pipeline.tasks.trained_model import use_attention_of_any_shape

    model = make_model(setup, dropout=0.1).to(setup.device).train()
    pairs = iter(make_pairs(setup, 32 * 60))
    # Each with other rows, and the largest first, as memory is then there for the others.
    batches = [pad(list(itertools.islice(pairs, rows))) for rows in range(51, 11, -1)]
    seconds_of_step(setup, model, pad(make_pairs(setup, 64)))  # what is made once in a process
    if setup.device == "cuda":
        free = new_and_known(setup, model, batches[1::2])
        figures["seconds a step by PyTorch's choice, new and known"] = free
        figures["new / known by PyTorch's choice"] = free[0] / free[1]
    use_attention_of_any_shape()
    ours = new_and_known(setup, model, batches[::2])
    figures["seconds a step, new and known"], figures["new / known"] = ours, ours[0] / ours[1]
    if setup.device == "cuda":
        expect(ours[0] <= 2 * ours[1], f"a new shape takes {ours[0] / ours[1]:.1f} times as long as a known one")


def new_and_known(setup: Setup, model: Model, batches: list[Batch]) -> list[float]:
    """Return the median seconds of a training step on batches that are new, and on the same ones again."""
    return [statistics.median(seconds_of_step(setup, model, batch) for batch in batches) for _ in range(2)]


def seconds_of_step(setup: Setup, model: Model, batch: Batch) -> float:
    batch = to_device(batch, setup.device)
    synchronize(setup.device)
    begin = time.perf_counter()
    with torch.autocast(setup.device, torch.bfloat16, enabled=setup.device == "cuda"):
        model(**batch).loss.backward()
    synchronize(setup.device)
    return time.perf_counter() - begin


# ---- whole runs


def out_of_memory(setup: Setup, figures: Figures) -> None:
    """An allocator that refuses in step 3 ends the run by one line; the same command goes on from checkpoint 2."""
    from pipeline import cli
    from pipeline.manifest import damage
    from pipeline.training.checkpoints import checkpoint_path

    words = short_run(setup, output := setup.folder / "run")
    errors = io.StringIO()
    with redirect_stderr(errors), at_step(3, lambda: torch.empty(2**50, dtype=torch.uint8, device=setup.device)):
        code = cli.main(["train", *words])
    message = next((line for line in errors.getvalue().splitlines() if line.startswith("error: ")), errors.getvalue())
    figures["exit code"], figures["message"] = code, message
    expect(code == 3, f"the exit code is {code}, not 3")
    expect("Traceback" not in errors.getvalue(), "there is a traceback")
    expect("training.gradient_checkpointing=true" in message, "the message names no setting")
    problem = damage(checkpoint_path(output, 2))
    expect(problem is None, f"the last checkpoint is damaged: {problem}")
    expect(cli.main(["train", *words]) == 0, "the same command does not go on")


def resume(setup: Setup, figures: Figures, is_deterministic: bool = False) -> None:
    """A run that SIGTERM ends in step 3 is saved; the same command gives the weights of a run that nothing disturbed.

    Bit by bit where algorithms are deterministic; elsewhere a GPU adds in another order each time, and the figures tell
    by how much that shows.
    """
    from safetensors.torch import load_file

    from pipeline import cli

    def weights(folder: Path) -> dict[str, Tensor]:
        return load_file(folder / "model.safetensors")

    setting = f"training.full_determinism={str(is_deterministic).lower()}"
    whole, stopped = setup.folder / "whole", setup.folder / "stopped"
    expect(cli.main(["train", *short_run(setup, whole), setting]) == 0, "the run does not end")
    with at_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        code = cli.main(["train", *short_run(setup, stopped), setting])
    expect(code == 75, f"after SIGTERM the exit code is {code}, not 75")
    expect((stopped / "checkpoint-3").is_dir(), "step 3 was not saved")
    expect(cli.main(["train", *short_run(setup, stopped), setting]) == 0, "the same command does not go on")
    expected, resumed = weights(whole), weights(stopped)
    figures["bit-identical"] = all(torch.equal(tensor, expected[name]) for name, tensor in resumed.items())
    figures["largest difference of a weight"] = max(
        float((tensor - expected[name]).abs().max()) for name, tensor in resumed.items()
    )
    expect(figures["bit-identical"] or not is_deterministic, "the weights are not those of the whole run")


def curves(setup: Setup, figures: Figures) -> None:
    """200 steps of the Multi30k config in bf16 and in float32: each mean of ten steps is alike within 5 %.

    Weights, batches and their order are the same. Rounding makes the runs drift apart, as two seeds do, which stays
    far below that.
    """
    config, steps = translation(setup), 40 if setup.is_tiny else 200
    losses = {}
    for dtype in ("float32", "bf16"):
        overrides = [*trainings(config, dtype, steps), f"training.output_dir={setup.folder / dtype}"]
        losses[dtype] = run_training([str(TRAIN), config.config, *overrides], "loss")
        figures[f"{dtype}, last loss"] = losses[dtype][-1]
    figures |= losses
    differences = [abs(low / full - 1) for low, full in zip(losses["bf16"], losses["float32"], strict=True)]
    figures["largest difference"] = max(differences)
    expect(losses["float32"][-1] < losses["float32"][0], "the loss does not fall")
    expect(max(differences) <= 0.05, f"the losses differ by up to {max(differences):.1%}, more than 5 %")


def generation(setup: Setup, figures: Figures) -> None:
    """Our search gives the tokens of `generate`, greedy and with 5 beams, by a model that learned to reverse.

    Batches add in another order than ours, so two tokens that are as probable to six digits may change places: in at
    most 2 % of the sentences.
    """
    from pipeline import load_config, train
    from pipeline.exporting.stock import to_stock
    from pipeline.inference.generation import generate
    from scripts.benchmark_answers import STOCK_ROWS, call_generate, open_test, time_answers

    symbols, steps, rows = (8, 60, 8) if setup.is_tiny else (20, 600, 256)
    data = [f"data.path={write_pairs(setup, symbols, rows)}", "data.options={}", "data.source=en", "data.target=fr"]
    settings = [*data, *common(setup, setup.folder / "run", steps), "model.pre_norm=false"]  # as Marian is
    settings += ["data.max_target_length=40", "generation.max_new_tokens=40", "training.warmup_steps=50"]
    path = str(CONFIGS / "reversal.yaml")
    checkpoint = train(load_config(path, settings)).output_dir
    arguments = argparse.Namespace(config=path, overrides=settings, checkpoint=checkpoint, device=setup.device)
    differing = []
    for beams in (1, 5):
        test, ids = open_test(arguments, beams), {}
        stock = to_stock(test.model).to(setup.device)
        ways: dict[str, Callable[[list[str]], Any]] = {
            "plain": partial(call_generate, test, test.model, size=STOCK_ROWS),
            "ours": partial(generate, test.model, test.task, generation=test.generation),
            "stock": partial(call_generate, test, stock, size=STOCK_ROWS),
        }
        for name, answer in ways.items():
            ids[name], seconds = time_answers(test, answer)
            figures[f"{beams} beams, {name}: sentences a second"] = len(ids[name]) / seconds
        differing.append(sum(ours != plain for ours, plain in zip(ids["ours"], ids["plain"], strict=True)))
        figures[f"{beams} beams: sentences that differ"] = f"{differing[-1]} of {len(ids['ours'])}"
    expect(max(differing) <= 0.02 * rows, f"{max(differing)} of {rows} sentences differ, more than 2 %")


def rate(setup: Setup, figures: Figures, is_base: bool = False) -> None:
    """Ours, packed and compiled, trains three times as many target tokens a second as a stock trainer with Marian.

    Both in bf16, on the same pairs. The peak of a step is that of 4,096 target tokens, without weights.
    """
    from scripts.benchmark_cases import describe_batches, step_memory
    from scripts.benchmark_setting import case_command
    from scripts.benchmark_training import ON_GPU

    config, dtype = translation(setup, is_base), "bf16" if setup.device == "cuda" else "float32"
    overrides = [*trainings(config, dtype, steps=60), *(ON_GPU if setup.device == "cuda" else [])]
    commands = {
        "stock": case_command(config, ["stock", False], overrides),
        "ours": [str(TRAIN), config.config, *overrides],
    }
    rates = {}
    for name, command in commands.items():
        # The first log holds the compiling.
        rates[name] = statistics.median(run_training(command, "items_per_second")[1:])
        figures[f"{name}: target tokens a second"] = rates[name]
    arguments = argparse.Namespace(config=config.config, overrides=overrides, device=setup.device)
    padding, operations = describe_batches(arguments)
    figures["vocabulary"] = len(AutoTokenizer.from_pretrained(config.tokenizer()))
    figures["matrix products, operations a second"] = peak = matrix_product_rate(setup.device, dtype)
    figures["ours / stock"] = ratio = rates["ours"] / rates["stock"]
    figures["share of the matrix-product rate"] = rates["ours"] * operations / peak
    figures["share of places that hold a token"] = padding
    needs = {name: step_memory(arguments, name) for name in commands}
    figures["peak of a step, ours / stock"] = needs["ours"] / needs["stock"]
    if not setup.is_tiny:
        expect(ratio >= GOAL, f"ours / stock is {ratio:.2f}, below {GOAL}")


# ---- what the parts work on


def make_model(setup: Setup, **changes: Any) -> Model:
    """Make the same small model each time, without dropout."""
    torch.manual_seed(0)
    size, vocabulary = (TINY, "tiny") if setup.is_tiny else (SMALL, "small")
    return Model(Seq2SeqTransformerConfig(**{"vocab_size": VOCABULARY[vocabulary], "dropout": 0.0, **size, **changes}))


def make_pairs(setup: Setup, count: int = 32) -> list[Pair]:
    """Make pairs of ids: sequences, and the reversal of most of each, so that both sides differ in length."""
    generator = random.Random(0)
    ids = range(FIRST_ID, VOCABULARY["tiny" if setup.is_tiny else "small"])
    sources = [generator.choices(ids, k=generator.randint(*LENGTHS)) for _ in range(count)]
    return [([*source, END], [*reversed(source[generator.randint(0, 3) :]), END]) for source in sources]


def pad(pairs: list[Pair]) -> Batch:
    """Make a batch of a row for each pair; the model finds the padding by its id, 0."""
    sources, targets = ([torch.tensor(ids) for ids in side] for side in zip(*pairs, strict=True))
    return {"input_ids": pad_sequence(sources, True, 0), "labels": pad_sequence(targets, True, IGNORED)}


def pack(pairs: list[Pair]) -> Batch:
    """Make a batch of one row a side, as `SequenceToSequence.pack`, which needs packages that may be missing."""
    batch = {}
    for name, rows_name, padding, side in (("input_ids", "source_rows", 0, 0), ("labels", "target_rows", IGNORED, 1)):
        ids = [token for pair in pairs for token in pair[side]]
        rows = [number for number, pair in enumerate(pairs) for _ in pair[side]]
        rest = BLOCK - len(ids) % BLOCK
        batch[name] = torch.tensor([ids + [padding] * rest])
        batch[rows_name] = torch.tensor([rows + [len(pairs)] * rest])
    return batch


def make_packed_batches(setup: Setup, tokens: int, count: int) -> list[Batch]:
    """Make batches of between half of `tokens` and all of them, sources and targets together."""
    generator = random.Random(0)
    pairs = iter(make_pairs(setup, count * tokens // LENGTHS[0]))
    batches = []
    for _ in range(count):
        room, chosen = generator.randint(tokens // 2, tokens), []
        while room > 0:
            chosen.append(next(pairs))
            room -= sum(map(len, chosen[-1]))
        batches.append(pack(chosen))
    return batches


def to_device(batch: Batch, device: str) -> Batch:
    return {name: tensor.to(device) for name, tensor in batch.items()}


def write_pairs(setup: Setup, symbols: int, held_out: int = 20) -> Path:
    """Write number sequences of different lengths and their reversal as JSON lines, in the columns of Multi30k.

    A number n comes as often as 1 / n, as words do, and each at least once in the training split.
    """
    folder, generator = setup.folder / "pairs", random.Random(0)
    folder.mkdir()
    all_numbers, longest = range(1, symbols + 1), LENGTHS[1]
    for split, count in (("train", 400 if setup.is_tiny else 20_000), ("validation", held_out), ("test", held_out)):
        lengths = [generator.randint(*LENGTHS) for _ in range(count)]
        rows = [[int((symbols + 1) ** generator.random()) for _ in range(length)] for length in lengths]
        if split == "train":
            rows += [[*all_numbers[begin : begin + longest]] for begin in range(0, symbols, longest)]
        texts = [" ".join(map(str, row)) for row in rows]
        pairs = [{"en": text, "fr": " ".join(reversed(text.split()))} for text in texts]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return folder


def translation(setup: Setup, is_base: bool = False) -> "Setting":
    """Return the Multi30k config at the size to check, for a training as scripts/benchmark.py runs it.

    Multi30k has too few words for the vocabulary of the paper's base size, so that takes made pairs.
    """
    from scripts.benchmark_setting import Setting

    size = TINY if setup.is_tiny else BASE if is_base else SMALL
    overrides = ["data.options={}", "data.streaming=false", "evaluation.metrics=[]"]
    overrides += [f"model.{name}={value}" for name, value in size.items()]
    if setup.data is not None and not is_base:
        overrides.append(f"data.path={setup.data}")
    else:
        symbols = VOCABULARY["tiny" if setup.is_tiny else "base" if is_base else "small"]
        overrides += [f"data.path={write_pairs(setup, symbols)}", "tokenizer.kind=word"]
        overrides.append(f"tokenizer.vocab_size={symbols + FIRST_ID + 1}")
    if setup.is_tiny:
        overrides.append("data.batch_tokens=400")
    overrides.append(f"training.output_dir={setup.folder / 'run'}")
    return Setting(str(CONFIGS / "benchmark_multi30k_en_fr.yaml"), tuple(overrides), setup.device, setup.folder)


def trainings(setting: "Setting", dtype: str, steps: int) -> list[str]:
    """Return the overrides of trainings that end after some steps, with a log every ten."""
    from scripts.benchmark_training import training_overrides

    limits = {"max_steps": steps, "save_steps": steps, "logging_steps": 10}
    return [*training_overrides(setting, dtype), *(f"training.{name}={value}" for name, value in limits.items())]


def run_training(command: list[str], name: str) -> list[float]:
    """Train in a process of its own, and return what it logs under a name."""
    from scripts.benchmark_setting import execute
    from scripts.benchmark_training import read_log

    return [log[name] for line in execute(command)[0].splitlines() if (log := read_log(line)) is not None]


def common(setup: Setup, output: Path, steps: int) -> list[str]:
    """Return the settings of a run that only trains, and saves at its end."""
    return [
        f"training.output_dir={output}",
        f"training.max_steps={steps}",
        f"training.save_steps={steps}",
        "training.eval_strategy=no",
        "training.load_best_model_at_end=false",
        "training.report_to=none",
        "training.disable_tqdm=true",
        *(["training.use_cpu=true"] if setup.device == "cpu" else []),
    ]


def short_run(setup: Setup, output: Path) -> list[str]:
    """Return config and settings of a run of eight steps that saves every second one, in bf16 on a GPU."""
    settings = ["data.options={rows: 500, held_out: 20}", "model.dropout=0.1", "training.warmup_steps=1"]
    settings += [*common(setup, output, 8), "training.save_steps=2", "training.logging_steps=1"]
    settings += ["training.save_total_limit=8", *(["training.bf16=true"] if setup.device == "cuda" else [])]
    return [str(CONFIGS / "reversal.yaml"), *settings]


@contextmanager
def at_step(number: int, action: Callable[[], Any]) -> Iterator[None]:
    """Do something in the forward pass of a training step, counted from 1."""
    forward, steps = Model.forward, itertools.count(1)

    @wraps(forward)
    def counted(self, *args, **kwargs):
        if self.training and next(steps) == number:
            action()
        return forward(self, *args, **kwargs)

    # A rehearsal goes forward as well, and would be counted.
    with mock.patch.object(Model, "forward", counted), mock.patch("pipeline.run.rehearse", return_value=[]):
        yield
