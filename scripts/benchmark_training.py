"""Target tokens a second of a training, without padding: ours, another commit's, stock transformers', and of peers.

Each training runs as its users run it, until it was measured long enough, and is then killed. It prints its rate every
few steps; the first of these lines, which holds the start, is left out. Its warm-up is over when the mean rates of two
successive stretches of `SETTLING` steps differ by at most `SETTLED`, but not before the least number of steps of
`Setting.warm_up`, and at the latest at the greatest one.
"""

import ast
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from scripts.benchmark_peers import eole_training, joeynmt_training
from scripts.benchmark_setting import (
    CASES,
    SCRIPTS,
    Contenders,
    Measure,
    Numbers,
    Ratio,
    Setting,
    case_command,
    refuse,
)

STEPS_A_LOG = 5
SETTLING, SETTLED = 20, 0.02
MANY_STEPS = 1_000_000  # more than are measured
TYPES = {"float32": "false", "bf16": "true"}  # name -> training.bf16
ON_GPU = ["training.torch_compile=true", "data.packing=true"]  # only for ours
RATE, MEMORY, PADDING = "target tokens a second", "peak memory of the processes, MB", "share of places with a token"
PRODUCTS = "operations a second"


@dataclass(frozen=True)
class Training:
    """A training as a process.

    Attributes:
        read: what a line of its output says, by the keys of our logs, or None; called with each line.
    """

    command: list[str]
    read: Callable[[str], dict[str, float] | None]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Stretch:
    """What passed between two lines of a log."""

    seconds: float
    rate: float


def contenders(setting: Setting) -> Contenders:
    """Return what is trained, in the order of a round."""
    types = [*TYPES] if setting.device == "cpu" else ["bf16"]
    trainings: dict[str, Callable[[], Training]] = {}
    for dtype in types:
        trainings[f"ours {dtype}"] = partial(ours, setting, dtype, SCRIPTS.parent)
        if setting.baseline is not None:
            trainings[f"baseline {dtype}"] = partial(ours, setting, dtype, setting.baseline)
        trainings[f"stock {dtype}"] = partial(stock, setting, dtype, False)
        trainings[f"stock grouped {dtype}"] = partial(stock, setting, dtype, True)
    if setting.eole is not None:
        trainings["eole float32"] = partial(eole, setting, setting.eole)
    if setting.joeynmt is not None:
        trainings["JoeyNMT float32"] = partial(joeynmt, setting, setting.joeynmt)
    turns: Contenders = {name: partial(take_turn, make, setting) for name, make in trainings.items()}
    for dtype in types:
        turns[f"matrix products {dtype}"] = partial(matrix_products, setting, dtype)
    turns["batches of ours"] = partial(describe_batches, setting, SCRIPTS.parent)
    if setting.baseline is not None and (setting.baseline / "scripts" / CASES).is_file():  # earlier ones cannot tell
        turns["batches of baseline"] = partial(describe_batches, setting, setting.baseline)
    return turns


def ratios() -> list[Ratio]:
    def rate(*names: str) -> tuple[Measure, ...]:
        return tuple(Measure(name, RATE) for name in names)

    stock_names, grouped_names = ([f"{name} {dtype}" for dtype in TYPES] for name in ("stock", "stock grouped"))
    (ours_32,), (ours_16,) = rate("ours float32"), rate("ours bf16")
    return [
        Ratio("float32 / baseline float32", ours_32, rate("baseline float32"), goal="1.5 for the small model"),
        Ratio("float32 / stock float32", ours_32, rate("stock float32"), goal="3.5"),
        Ratio("float32 / stock grouped float32", ours_32, rate("stock grouped float32"), goal="2.0"),
        Ratio("float32 / eole", ours_32, rate("eole float32"), goal="1.9"),
        Ratio("float32 / JoeyNMT", ours_32, rate("JoeyNMT float32")),
        Ratio("bf16 / baseline float32", ours_16, rate("baseline float32"), goal="2.0 with AMX, 1.7 with AVX512-BF16"),
        Ratio("bf16 / float32", ours_16, rate("ours float32"), goal="1.0"),
        Ratio("bf16 / the better stock", ours_16, rate(*stock_names), goal="6 with AMX, 5 with AVX512-BF16"),
        Ratio("bf16 / the better stock grouped", ours_16, rate(*grouped_names)),
        Ratio(
            f"{PADDING}, ours / baseline",
            Measure("batches of ours", PADDING),
            (Measure("batches of baseline", PADDING),),
        ),
        Ratio(
            "memory, bf16 / float32", Measure("ours bf16", MEMORY), (Measure("ours float32", MEMORY),), goal="<= 1.5"
        ),
        *(
            Ratio(
                f"{dtype}: share of the rate of matrix products",
                Measure(f"ours {dtype}", RATE),
                (Measure(f"matrix products {dtype}", PRODUCTS),),
                Measure("batches of ours", "operations a target token"),
            )
            for dtype in TYPES
        ),
    ]


# ---- the trainings


def ours(setting: Setting, dtype: str, tree: Path) -> Training:
    """Return scripts/train.py of this or of another commit."""
    output = tempfile.mkdtemp(dir=setting.folder)
    command = [sys.executable, str(tree / "scripts" / "train.py"), str(Path(setting.config).resolve())]
    command += [*training_overrides(setting, dtype), *(ON_GPU if setting.device == "cuda" else [])]
    return Training([*command, f"training.output_dir={output}"], read_log, {"PYTHONPATH": str(tree)})


def stock(setting: Setting, dtype: str, is_grouped: bool) -> Training:
    """Return a Seq2SeqTrainer with a stock model, as in transformers' documentation."""
    command = case_command(setting, ["stock", is_grouped], training_overrides(setting, dtype))
    return Training([sys.executable, *command], read_log)


def eole(setting: Setting, python: str) -> Training:
    command, read = eole_training(setting, python, STEPS_A_LOG)
    return Training(command, read, {"PYTHONPATH": ""})


def joeynmt(setting: Setting, python: str) -> Training:
    command, read = joeynmt_training(setting, python, STEPS_A_LOG)
    return Training(command, read, {"PYTHONPATH": ""})


def training_overrides(setting: Setting, dtype: str) -> list[str]:
    return [
        *setting.training_overrides(),
        f"training.bf16={TYPES[dtype]}",
        f"training.use_cpu={str(setting.device == 'cpu').lower()}",
        f"training.max_steps={MANY_STEPS}",
        f"training.save_steps={MANY_STEPS}",
        f"training.logging_steps={STEPS_A_LOG}",
        "training.disable_tqdm=true",
    ]


def read_log(line: str) -> dict[str, float] | None:
    """Return what a log line of a Trainer says, if the line is one."""
    if not (line.startswith("{") and "items_per_second" in line):
        return None
    return {name: float(value) for name, value in ast.literal_eval(line.strip()).items()}


# ---- a turn


def take_turn(make: Callable[[], Training], setting: Setting) -> Numbers:
    """Run a training until it was measured long enough, and return its rate and its memory."""
    training = make()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **training.environment}
    process = subprocess.Popen(
        training.command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,  # so that all its processes can be found, and killed
    )
    try:
        return watch(process, training, setting)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def watch(process: subprocess.Popen, training: Training, setting: Setting) -> Numbers:
    stretches: list[Stretch] = []
    warm_up: int | None = None  # how many stretches it took
    numbers: Numbers = {}
    said: list[str] = []
    last = time.perf_counter()
    assert process.stdout is not None
    for line in process.stdout:
        said.append(line)
        if (log := training.read(line)) is None:
            continue
        now = time.perf_counter()
        stretches.append(Stretch(now - last, log["items_per_second"]))
        last = now
        if warm_up is None:
            if is_warm(stretches, setting.warm_up):
                warm_up = len(stretches)
                numbers["memory after the warm-up, MB"] = peak_memory(process.pid) / 1e6
        elif sum(stretch.seconds for stretch in stretches[warm_up:]) >= setting.seconds:
            measured = stretches[warm_up:]
            numbers |= {
                RATE: mean_rate(measured),
                MEMORY: peak_memory(process.pid) / 1e6,
                "steps of warm-up": warm_up * STEPS_A_LOG,
                "steps measured": len(measured) * STEPS_A_LOG,
                "rate of the warm-up": mean_rate(stretches[1:warm_up]),
            }
            return numbers | ({PADDING: log[PADDING]} if PADDING in log else {})
    refuse(training.command, "".join(said))
    return {}


def is_warm(stretches: list[Stretch], bounds: tuple[int, int]) -> bool:
    least, greatest = bounds
    steps = len(stretches) * STEPS_A_LOG
    lines = SETTLING // STEPS_A_LOG
    if steps < least or len(stretches) < 2 * lines + 1:  # the first holds the start
        return steps >= greatest
    before, now = mean_rate(stretches[-2 * lines : -lines]), mean_rate(stretches[-lines:])
    return steps >= greatest or abs(now / before - 1) <= SETTLED


def mean_rate(stretches: list[Stretch]) -> float:
    """Return the tokens of all stretches by their seconds."""
    return sum(stretch.rate * stretch.seconds for stretch in stretches) / sum(stretch.seconds for stretch in stretches)


def peak_memory(session: int) -> int:
    """Return the sum of the peaks of the resident memory of all processes of a session, in bytes."""
    peaks = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            if os.getsid(int(status.parent.name)) == session:
                fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
                peaks.append(int(fields["VmHWM"].split()[0]) * 1024 if "VmHWM" in fields else 0)  # a zombie has none
        except (ProcessLookupError, FileNotFoundError):
            continue
    return sum(peaks)


def matrix_products(setting: Setting, dtype: str) -> Numbers:
    return {PRODUCTS: setting.measure(["matrix_product_rate", dtype])}


def describe_batches(setting: Setting, tree: Path) -> Numbers:
    overrides, script = training_overrides(setting, "float32"), str(tree / "scripts" / CASES)
    padding, operations = setting.measure(["describe_batches"], overrides, script, PYTHONPATH=str(tree))
    return {PADDING: padding, "operations a target token": operations}
