"""Tell in eight minutes what of this project holds on a GPU: scripts/check_gpu.py [--device cuda] [--output check_gpu]

Each part of the table PARTS runs in its own process with its own time limit, so that one that hangs or crashes fails
alone. It ends as "ok", "failed" or "not possible here". OUTPUT.json and OUTPUT.md are written anew after each part. The
exit code is 1 if a part failed. What a part checks, and by which tolerance, is in scripts/check_gpu_parts.py.

Parts that read data need packages that a GPU machine may lack, and then say so. Where it has no network either, take
them there as wheels. On a machine that has a network, of the same Python and processor:

    pip download --no-deps --dest wheels datasets dill multiprocess evaluate pydantic pydantic-core annotated-types \\
        typing-inspection ruamel.yaml

and on the GPU machine, with `wheels` copied there:

    pip install --no-index --no-deps --find-links wheels datasets dill multiprocess evaluate pydantic pydantic-core \\
        annotated-types typing-inspection ruamel.yaml

Name further packages that a part reports as missing in both lines; pyarrow and xxhash are others that datasets needs.
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch

from pipeline.cli import print_errors
from pipeline.commands.arguments import path
from pipeline.errors import explain_path
from scripts import check_gpu_parts as parts
from scripts.check_gpu_parts import Failed, Figures, NotPossible, Setup

OK, FAILED, NOT_POSSIBLE = "ok", "failed", "not possible here"
MULTI30K = ROOT.parent / "shared" / "data" / "multi30k"
MINUTES = 8  # for all parts together
LOG_END = 3000  # characters of a failed part's output that are kept


@dataclass(frozen=True)
class Part:
    """One check: a function that fills in figures, and raises Failed or NotPossible; and the seconds it may take.

    Of eight minutes for all: with --minutes 16 it may take twice as long.
    """

    check: Callable[[Setup, Figures], None]
    seconds: int


# In this order, as the last parts get what is left of the time.
PARTS = {
    "machine": Part(parts.machine, 60),
    "float32 as on the CPU": Part(parts.float32, 60),
    "bf16 as on the CPU": Part(parts.bf16, 60),
    "packed as padded": Part(parts.packed, 90),
    "compiled shapes": Part(parts.compiling, 180),
    "new shapes": Part(parts.new_shapes, 60),
    "out of memory": Part(parts.out_of_memory, 90),
    "SIGTERM and resume": Part(parts.resume, 90),
    "SIGTERM and resume, deterministic": Part(partial(parts.resume, is_deterministic=True), 90),
    "loss curves, bf16 and float32": Part(parts.curves, 120),
    "generation": Part(parts.generation, 120),
    "training rate, d_model 256": Part(parts.rate, 150),
    "training rate, base size": Part(partial(parts.rate, is_base=True), 180),
}


@dataclass
class Result:
    """What came of a part.

    Attributes:
        reason: why it failed, or was not possible.
        log: the end of what a failed part printed.
    """

    status: str
    reason: str = ""
    figures: Figures = field(default_factory=dict)
    seconds: float = 0.0
    log: str = ""


def check(part: Part, setup: Setup) -> Result:
    """Run a part in this process."""
    figures: Figures = {}
    try:
        part.check(setup, figures)
    except NotPossible as reason:
        return Result(NOT_POSSIBLE, str(reason), figures)
    except ModuleNotFoundError as error:
        return Result(NOT_POSSIBLE, f"{error.name} is not installed; --help tells how without a network", figures)
    except Failed as reason:
        return Result(FAILED, str(reason), figures)
    except Exception as error:  # a part that breaks is a result too
        traceback.print_exc()
        return Result(FAILED, f"{type(error).__name__}: {error}", figures)
    return Result(OK, "", figures)


def start(command: Sequence[str], seconds: float, folder: Path, device: str) -> Result:
    """Run a command that writes a result as JSON to `folder`; end it with all its processes after `seconds`."""
    result, log = folder / "result.json", folder / "log.txt"
    result.unlink(missing_ok=True)
    environment = {
        "CUDA_VISIBLE_DEVICES": "0",  # Trainer takes all it sees
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(folder.parent / "inductor"),  # compiled here for the first time
        **({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}),
    }
    begin = time.monotonic()
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment, start_new_session=True)
        try:
            process.wait(seconds)
            outcome = Result(FAILED, f"its process ended with {process.returncode}, without a result")
        except subprocess.TimeoutExpired:
            outcome = Result(FAILED, f"no result within {seconds:.0f} seconds")
        finally:
            end(process)
    if result.is_file():
        outcome = Result(**json.loads(result.read_text()))
    outcome.seconds = time.monotonic() - begin
    outcome.log = log.read_text(errors="replace")[-LOG_END:] if outcome.status == FAILED else ""
    return outcome


def end(process: subprocess.Popen) -> None:
    """Kill what is left of a process and of those that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def write(results: dict[str, Result], output: Path) -> None:
    """Write all results so far as JSON and as a table; each file is there as a whole at any moment."""
    values = {name: asdict(result) for name, result in results.items()}
    texts = {".json": json.dumps(values, indent=2) + "\n", ".md": as_markdown(results)}
    for suffix, text in texts.items():
        staged = output.with_name(f".{output.name}{suffix}")
        staged.write_text(text)
        staged.replace(output.with_name(output.name + suffix))


def as_markdown(results: dict[str, Result]) -> str:
    """Make a table with a row for each part; curves are in the JSON file only."""
    lines = ["| part | result | figures | seconds |", "|---|---|---|---|"]
    for name, result in results.items():
        figures = "; ".join(
            f"{key} {show(value)}" for key, value in result.figures.items() if not isinstance(value, list)
        )
        status = f"{result.status}: {result.reason}" if result.reason else result.status
        lines.append(f"| {name} | {as_cell(status)} | {as_cell(figures)} | {result.seconds:.0f} |")
    return "\n".join(lines) + "\n"


def as_cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def show(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], help="(default: cuda where there is one)")
    parser.add_argument("--output", type=path, default=Path("check_gpu"), help="without suffix (default: check_gpu)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help="by name")
    parser.add_argument("--tiny", action="store_true", help="small sizes, as always on a CPU")
    parser.add_argument("--data", type=path, help=f"Multi30k as JSON lines, en and fr (default: {MULTI30K}, if there)")
    parser.add_argument("--minutes", type=minutes, default=MINUTES, help=f"for all parts together (default: {MINUTES})")
    parser.add_argument("--run", choices=PARTS, help=argparse.SUPPRESS)  # in this process; the result goes to --folder
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here")
    is_tiny = arguments.tiny or device == "cpu"
    data = arguments.data or (MULTI30K if MULTI30K.is_dir() and not is_tiny else None)
    if arguments.run:
        result = check(PARTS[arguments.run], Setup(device, is_tiny, data, arguments.folder))
        (arguments.folder / "result.json").write_text(json.dumps(asdict(result)))
        return 0
    options = ["--device", device, *(["--tiny"] if is_tiny else []), *(["--data", str(data)] if data else [])]

    def run(_: argparse.Namespace) -> int:
        return check_all(arguments.parts, options, device, arguments.output, arguments.minutes * 60)

    return print_errors(run, arguments)


def minutes(argument: str) -> float:
    number = float(argument)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{argument} is not a time")
    return number


def check_all(names: Sequence[str], options: Sequence[str], device: str, output: Path, seconds: float) -> int:
    """Run parts one after another, each in its own process, and write the results after each."""
    deadline = time.monotonic() + seconds
    results: dict[str, Result] = {}
    with explain_path(f"--output {output}"):
        output.parent.mkdir(parents=True, exist_ok=True)
        write(results, output)
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(names):
            own = Path(folder, str(number))
            own.mkdir()
            limit = PARTS[name].seconds * seconds / (60 * MINUTES)
            left = min(limit, deadline - time.monotonic())
            command = [sys.executable, __file__, *options, "--folder", str(own), "--run", name]
            result = start(command, left, own, device) if left >= 1 else Result(FAILED)
            if result.status == FAILED and left < limit and result.seconds >= left - 1:
                result = Result(NOT_POSSIBLE, f"too little time was left; --parts {name!r} runs only this one")
            results[name] = result
            print(as_markdown({name: results[name]}).splitlines()[-1], flush=True)
            write(results, output)
    return int(any(result.status == FAILED for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
