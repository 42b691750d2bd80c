"""What a run will do later, done once on the real rows before its first step.

A setting that fails in the first evaluation, or a disk that is too small for the second checkpoint, is found here in
seconds and not after hours. Nothing of it stays: weights, random numbers and the position in the data are those of a
run without rehearsal, byte for byte. `CHECKS` is the table of what is rehearsed.
"""

import copy
import math
import random
import shutil
import tempfile
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from pipeline.config import Config
from pipeline.data.batch_stream import Position
from pipeline.data.filters import count_taken
from pipeline.data.rows import HOW_TO_FIX, Feature
from pipeline.errors import ConfigError, DataError, RunError, TeacherForcingError, one_line
from pipeline.inference.batches import batches_by_length
from pipeline.inference.expected_scores import score_warnings
from pipeline.inference.metrics import alike, exact_match
from pipeline.memory import available_memory, peak_memory
from pipeline.publishing.forms import make_form
from pipeline.publishing.secrets import refuse_secrets
from pipeline.tasks.base import Batch, Task
from pipeline.training.arguments import count_saves
from pipeline.training.out_of_memory import is_out_of_memory, training_changes
from pipeline.training.trainer import TeacherForcingTrainer

SAMPLE = 500  # training rows that are read for it at most
GENERATED_ROWS = 2
GENERATED_TOKENS = 8  # a new model does not stop by itself, and the first tokens show every setting
UNKNOWN_SHARE = 0.01  # of unknown tokens in validation and test, above which the tokenizer is doubted
TRIED_TOKENS = 16_384  # of a batch, on a CPU
WATCHED_ROWS = 1_000_000  # training rows that are compared with validation and test at most: 8 MB
ADAM_STATES = 2  # tensors as large as the weights
FLOAT = 4  # bytes

Status = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """What a check found: a fact, something to think about, or why the run cannot work, and what to do."""

    status: Status
    text: str
    check: str = ""
    error: TeacherForcingError | None = None  # what the run cannot begin with


class SeenRows:
    """Fingerprints of training rows that were read anyway, to find those of validation and test among them."""

    def __init__(self, columns: Sequence[str]):
        self.columns = columns
        self.hashes = array("q")

    def watch(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the rows as they are."""
        for row in rows:
            if self.columns and len(self.hashes) < WATCHED_ROWS:
                self.hashes.append(self._hash(row))
            yield row

    def find(self, features: Iterable[Feature]) -> list[Feature]:
        """Return the features whose texts were seen."""
        seen = set(self.hashes) if self.columns else set()
        return [feature for feature in features if seen and self._hash(feature) in seen]

    def _hash(self, row: dict[str, Any]) -> int:
        return hash(tuple(str(row.get(name)) for name in self.columns))


def seen_rows(task: type[Task]) -> SeenRows:
    """Watch the texts of a task whose rows are independent pairs; rows of one running text repeat by nature."""
    return SeenRows(task.text_columns if task.make_batches is Task.make_batches else ())


@dataclass
class Scene:
    """What a rehearsal has to work with.

    Attributes:
        held_out: features by split, all rows of it; of the splits that there are.
        batches: training batches of the first rows, as lists of features; filled by the first check.
    """

    config: Config
    trainer: TeacherForcingTrainer
    folder: Path
    held_out: dict[str, list[Feature]]
    seen: SeenRows
    batches: list[list[Feature]] = field(default_factory=list)

    @property
    def task(self) -> Task:
        return self.trainer.task

    @property
    def model(self) -> PreTrainedModel:
        return self.trainer.plain_model


def rehearse(scene: Scene) -> list[Finding]:
    """Do all checks; one that fails is a finding, and does not keep the others from being done."""
    findings = []
    with random_states_kept():
        for name, check in CHECKS.items():
            try:
                results = [*check(scene)]
            except TeacherForcingError as error:
                results = [Finding("error", str(error), error=error)]
            findings += [replace(finding, check=name) for finding in results]
    return findings


def raise_errors(findings: Sequence[Finding]) -> None:
    """Raise what a run must not begin with.

    Raises:
        ConfigError, DataError: the first error, if none is the machine's.
        RunError: the first one that is.
    """
    errors = [finding.error for finding in findings if finding.error is not None]
    if not errors:
        return
    worst = max(errors, key=lambda error: error.exit_code)  # the first of those
    others = f" ({len(errors) - 1} more: --dry-run lists all)" if len(errors) > 1 else ""
    raise type(worst)(f"{worst}{others}") from worst


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Leave all random numbers that come later as they would have been."""
    python, arrays = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)


# ---- the checks


def check_training_rows(scene: Scene) -> Iterator[Finding]:
    """Read the first rows into batches."""
    stream = copy.copy(scene.trainer.loader.stream)
    stream.window = min(SAMPLE, stream.window)
    window = next(stream.windows(Position()))
    if window.bad_rows and stream.max_bad_rows == 0:
        raise DataError(f"{window.bad_rows[0]}; {HOW_TO_FIX}")
    scene.batches += window.batches
    # Where no tokenizer is trained, nobody has read the rows before.
    deque(scene.seen.watch(chain.from_iterable(window.batches)), maxlen=0)
    filtered = sum(map(count_taken, window.filtered.values()))
    taken = f", {filtered:,} left out by filters" if filtered else ""
    yield Finding("ok", f"{window.num_rows:,} rows read, {len(window.bad_rows):,} of them bad{taken}")


def check_held_out_rows(scene: Scene) -> Iterator[Finding]:
    """Look for rows of validation and test among the training rows."""
    for split, features in scene.held_out.items():
        yield Finding("ok", f"{split}: all {len(features):,} rows can be used")
        if copies := scene.seen.find(features):
            example = " ".join(copies[0]["source"].split())[:60]
            yield Finding(
                "warning",
                f"{split}: {len(copies):,} of {len(features):,} rows are among the training rows, such as {example!r}: "
                "scores on them say nothing; take them out of the training split, or set data.filters.drop_held_out",
            )


def check_tokens(scene: Scene) -> Iterator[Finding]:
    """Count what the tokenizer does not know."""
    unknown = None if scene.task.tokenizer is None else scene.task.tokenizer.unk_token_id
    features = [feature for features in scene.held_out.values() for feature in features]
    if unknown is None or not features:
        return
    ids = [token for feature in features for name in ("input_ids", "labels") for token in as_ids(feature.get(name))]
    share = ids.count(unknown) / max(1, len(ids))
    if share > UNKNOWN_SHARE:
        yield Finding(
            "warning",
            f"{share:.1%} of the tokens of {' and '.join(scene.held_out)} are unknown to the tokenizer, which can "
            "neither read nor write them; raise tokenizer.vocab_size, or take another tokenizer.kind",
        )
    else:
        yield Finding("ok", f"{share:.2%} of the tokens of {' and '.join(scene.held_out)} are unknown")


def as_ids(value: Any) -> list[int]:
    return value if isinstance(value, list) else []


def check_scores(scene: Scene) -> Iterator[Finding]:
    """Look for reasons why the scores will be lower than the predictions deserve."""
    if not scene.task.has_metrics:
        return
    read = [feature for batch in scene.batches for feature in batch]
    features = next(iter(scene.held_out.values()), read)
    metrics = scene.trainer.metrics or [exact_match]  # what cannot be written is lost without a score as well
    warnings = score_warnings(scene.config, scene.task, features, metrics)
    yield from (Finding("warning", warning) for warning in warnings)
    if not warnings:
        yield Finding("ok", "a model without mistakes gets the best scores")


def check_largest_batch(scene: Scene) -> Iterator[Finding]:
    """Go forward and backward, and see whether the largest batch fits into the memory.

    On a GPU that batch is run. On a CPU, where it can take minutes and the system kills what takes too much, its memory
    is estimated from that of the first rows of a real batch.
    """
    if not scene.batches or scene.trainer.is_fsdp_enabled:  # sharded only when the training begins
        return
    real = max(scene.batches, key=lambda batch: tokens_of(scene.task, batch))
    is_gpu = scene.trainer.args.device.type == "cuda"
    tried = real if is_gpu else first_rows(scene, real)
    tokens = max(1, tokens_of(scene.task, tried))
    seconds, peak = measure_step(scene, tried)
    yield Finding("ok", describe_pass(scene, real, seconds * tokens_of(scene.task, real) / tokens))
    expected, possible = largest_batches(scene)
    settings = [*training_changes(scene.trainer.args, scene.config.data.batch_tokens)]
    advice = f"; what helps: {', '.join(settings[0] + settings[1]) or 'a smaller model'}"
    room = available_memory(scene.trainer.args.device)
    gradients = sum(parameter.nbytes for parameter in scene.model.parameters() if parameter.requires_grad)
    states = ADAM_STATES * gradients

    def need(batch: list[Feature]) -> float:
        if is_gpu:
            try:
                return measure_step(scene, batch)[1] + states
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                torch.cuda.empty_cache()
                return math.inf
        fixed = min(peak, gradients)  # as large whatever the batch
        return fixed + (peak - fixed) * tokens_of(scene.task, batch) / tokens + states

    for batch, status, when in ((possible, "warning", "rows may be that long"), (expected, "error", "rows are")):
        bytes_needed = need(batch)
        size = f"{len(batch):,} rows of {' + '.join(map(str, scene.task.lengths(batch[0])))} tokens"
        if bytes_needed <= room:
            yield Finding(
                "ok", f"the largest batch, {size}, needs about {bytes_needed / 1e9:,.2f} of {room / 1e9:,.1f} GB"
            )
            return
        amount = "more memory than there is" if math.isinf(bytes_needed) else f"about {bytes_needed / 1e9:,.1f} GB"
        text = f"a batch of {size} ({when}) needs {amount}, and {room / 1e9:,.1f} GB are free{advice}"
        if status == "error":
            raise RunError(text)
        yield Finding("warning", text)


def largest_batches(scene: Scene) -> tuple[list[Feature], list[Feature]]:
    """Return the largest batch of rows as long as those that were read, and as long as the settings allow."""
    task, stream = scene.task, scene.trainer.loader.stream
    features = [feature for batch in scene.batches for feature in batch]
    if stream.make_batches is not None or stream.packing:  # all their batches are of one size
        batch = max(scene.batches, key=lambda batch: tokens_of(task, batch))
        return batch, batch
    longest = max(features, key=lambda feature: sum(task.lengths(feature)))
    num_rows = stream.num_rows or stream.window

    def fill(feature: Feature) -> list[Feature]:
        return [feature] * min(stream.room(task.lengths(feature)), stream.window, num_rows)

    return fill(longest), fill(task.stretch(longest, scene.config.data))


def first_rows(scene: Scene, batch: list[Feature]) -> list[Feature]:
    """Return as many rows of a batch as a CPU goes through in seconds."""
    if scene.trainer.loader.stream.make_batches is not None:  # whose rows belong together
        return batch
    return batch[: max(1, TRIED_TOKENS * len(batch) // max(1, tokens_of(scene.task, batch)))]


def tokens_of(task: Task, batch: Sequence[Feature]) -> int:
    """Count the places of a batch, padding included."""
    return len(batch) * sum(map(max, zip(*map(task.lengths, batch), strict=True)))


def measure_step(scene: Scene, features: list[Feature]) -> tuple[float, int]:
    """Go forward and backward; return the seconds of the second time, and the peak of memory in bytes."""
    trainer, model = scene.trainer, scene.model
    arguments = trainer.args
    if arguments.gradient_checkpointing:  # as Trainer does when it begins
        model.gradient_checkpointing_enable(arguments.gradient_checkpointing_kwargs)
    collate = scene.task.pack if scene.config.data.packing else scene.task.collate
    batch = {name: tensor.to(arguments.device) for name, tensor in collate(features).items()}
    was_training = model.training
    model.train()
    try:
        with peak_memory(arguments.device) as read_peak:
            for _ in range(2):
                begin = time.perf_counter()
                loss = forward(scene, batch)
                loss.backward()
                model.zero_grad()
                seconds = time.perf_counter() - begin
            return seconds, read_peak()
    finally:
        model.zero_grad()
        model.train(was_training)


def forward(scene: Scene, batch: Batch) -> Tensor:
    with scene.trainer.accelerator.autocast():
        arguments = copy.copy(scene.task).with_state(batch)  # of a copy, as it may begin a text
        loss = scene.model(**arguments).loss
    if not loss.isfinite():
        raise RunError(
            f"the loss of a first batch is {float(loss)}: the model gives values that are not finite before it has "
            "learned anything; look at the sizes in `model`, and at the numbers in the data"
        )
    return loss


def describe_pass(scene: Scene, batch: list[Feature], seconds: float) -> str:
    num_rows = scene.trainer.loader.stream.num_rows
    if num_rows is None:
        return f"forward and backward take about {seconds:.2g} seconds a batch"
    mean = sum(map(len, scene.batches)) / len(scene.batches)
    a_pass = seconds * num_rows / mean / scene.trainer.args.world_size
    duration = f"{a_pass:.2g} seconds" if a_pass < 60 else f"{a_pass / 60:,.0f} minutes"
    return f"forward and backward take about {seconds:.2g} seconds a batch, {duration} a pass"


def check_generation(scene: Scene) -> Iterator[Finding]:
    """Score and generate as configured: while training, and at the end."""
    features = next(iter(scene.held_out.values()), [])
    if not features:
        return
    final = scene.model.generation_config if scene.model.can_generate() else None
    features = scene.task.to_evaluation(features)[:GENERATED_ROWS]
    for generation in [scene.trainer.generation] if final is None else [scene.trainer.generation, final]:
        try:
            evaluate_shortly(scene, features, generation)
        except (ValueError, TypeError, NotImplementedError, ImportError, IndexError) as error:
            # What transformers and the metrics raise for a setting that they cannot follow.
            raise ConfigError(
                f"generation or evaluation as configured fails: {one_line(error) or type(error).__name__}"
            ) from error
    yield Finding("ok", f"{len(features)} rows scored{' and generated' if scene.trainer.metrics else ''} as configured")


def evaluate_shortly(scene: Scene, features: list[Feature], generation: GenerationConfig | None) -> None:
    """Evaluate without the other processes, and with few tokens where no setting asks for a number of them."""
    if generation is not None and not (generation.min_length or generation.min_new_tokens or generation.max_length):
        generation = copy.deepcopy(generation)
        generation.max_new_tokens = min(generation.max_new_tokens, GENERATED_TOKENS)
    metrics = scene.trainer.metrics
    with torch.no_grad():
        for samples, batch in batches_by_length(scene.model, scene.task, features, len(features)):
            scene.task.score(scene.model, batch)
            if not metrics:
                continue
            predictions = scene.task.predict(scene.model, batch, generation)
            if len(predictions) != len(samples):
                raise ConfigError(
                    f"generation: it gives {len(predictions)} predictions for {len(samples)} rows; leave "
                    "num_return_sequences out"
                )
            for metric in metrics:
                metric(predictions, alike([sample["target"] for sample in samples]))


def check_saving(scene: Scene) -> Iterator[Finding]:
    """Save the model, load it again, give it the form that is published, and look for secrets in that."""
    with tempfile.TemporaryDirectory(prefix=".rehearsal-", dir=scene.folder) as name:
        folder = Path(name)
        scene.model.save_pretrained(folder)
        if scene.task.tokenizer is not None:
            scene.task.tokenizer.save_pretrained(folder)
        loaded = type(scene.model).from_pretrained(folder).state_dict()
        for key, tensor in scene.model.state_dict().items():
            if not torch.equal(loaded[key].to(tensor), tensor):
                raise ConfigError(f"model: {key} is not what was saved, once it is loaded again")
        size = sum(path.stat().st_size for path in folder.rglob("*"))
        if scene.config.hub.push:
            workspace = folder / "form"
            workspace.mkdir()
            refuse_secrets(make_form(folder, workspace, scene.config.hub))
    yield Finding("ok", f"saved, loaded and compared: {size / 1e6:,.1f} MB")
    yield from check_disk(scene, size)


def check_disk(scene: Scene, model_size: int) -> Iterator[Finding]:
    """Compare the room on the disk with what the checkpoints will take."""
    arguments = scene.trainer.args
    beside = ADAM_STATES + (scene.trainer.average is not None)
    size = model_size + beside * FLOAT * sum(p.numel() for p in scene.model.parameters() if p.requires_grad)
    free = shutil.disk_usage(scene.folder).free
    saves = count_saves(arguments)
    kept = arguments.save_total_limit or (1 if math.isinf(saves) else saves)
    if best := scene.trainer.average_best:
        kept = max(kept, best + 1)  # the newest may be none of them
    count = min(saves, kept)
    need = (count + 1) * size  # one more is written before the oldest is removed
    text = f"{count} checkpoints of {size / 1e6:,.1f} MB need {need / 1e6:,.1f} MB of {free / 1e6:,.0f} MB on the disk"
    if free < min(2, count + 1) * size:
        raise RunError(f"{scene.folder}: {text}; make room, or choose another training.output_dir")
    yield Finding(*(("ok", text) if need <= free else ("warning", f"{text}; set training.save_total_limit")))


# In this order, as the first one reads the rows that others work on.
CHECKS: dict[str, Callable[[Scene], Iterator[Finding]]] = {
    "training rows": check_training_rows,
    "held-out rows": check_held_out_rows,
    "tokens": check_tokens,
    "scores": check_scores,
    "memory and time": check_largest_batch,
    "evaluation": check_generation,
    "saving": check_saving,
}
