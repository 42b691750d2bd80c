"""What the parts of the benchmark share: what is measured, the processes that measure it, and what they give back."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.splits import open_split
from pipeline.errors import ConfigError
from pipeline.setup.tokenizer_setup import prepare_tokenizer
from pipeline.tasks.config_loading import load_config
from pipeline.tasks.registry import get_task

SCRIPTS = Path(__file__).parent
CASES = "benchmark_cases.py"
Numbers = dict[str, Any]  # by the name of a measure; lists hold an answer each
Contenders = dict[str, Callable[[], Numbers]]  # name -> takes one turn


@dataclass(frozen=True)
class Measure:
    """A number of a contender."""

    contender: str
    name: str


@dataclass(frozen=True)
class Ratio:
    """A quotient of medians.

    Attributes:
        below: of several, the greatest that was measured counts.
        factor: a number that is multiplied with that above the line.
        goal: what is asked for, in words.
    """

    title: str
    above: Measure
    below: tuple[Measure, ...]
    factor: Measure | None = None
    goal: str = ""


@dataclass(frozen=True)
class Setting:
    """What is measured: a config with overrides, on a device; and how.

    Attributes:
        tokenizer: folder of the tokenizer that all trainings use.
        folder: for what a measurement writes; it is removed at the end.
        warm_up: steps at least, and at most.
        seconds: to measure a training after its warm-up.
        baseline: folder of another commit of this project.
        eole, joeynmt: Python interpreters of environments that have them.
        checkpoint: a run of this config.
    """

    config: str
    overrides: tuple[str, ...]
    device: str
    folder: Path
    warm_up: tuple[int, int] = (40, 100)
    seconds: float = 30.0
    baseline: Path | None = None
    eole: str | None = None
    joeynmt: str | None = None
    checkpoint: str | None = None

    def training_overrides(self) -> list[str]:
        """Return the overrides of all trainings: one tokenizer, no evaluation, no checkpoint before the end."""
        return [
            *self.overrides,
            f"tokenizer.path={self.tokenizer()}",
            "data.validation=null",
            "data.test=null",
            "training.eval_strategy=no",
            "training.load_best_model_at_end=false",
            "training.report_to=none",
        ]

    def tokenizer(self, name: str = "tokenizer") -> Path:
        """Return the folder of the tokenizer, which is trained where the config names none."""
        path = self.folder / name
        if not path.is_dir():
            config = load_config(self.config, self.overrides)
            rows = open_split(config.data, config.data.train, get_task(config.task).columns(config))
            tokenizer = prepare_tokenizer(config, iter(rows), None)
            assert tokenizer is not None  # as the task has texts
            tokenizer.save_pretrained(path)
        return path

    def measure(self, what: list, overrides: list[str] | None = None, script: str = CASES, **environment: str) -> Any:
        """Make a measurement of a script in a new process; a dict gets the process's peak memory as well."""
        output, peak = execute(case_command(self, what, overrides, script), environment)
        result = json.loads(output.splitlines()[-1])
        return result | {"peak memory of the process, MB": peak / 1e6} if isinstance(result, dict) else result


def case_command(setting: Setting, what: list, overrides: list[str] | None = None, script: str = CASES) -> list[str]:
    """Return the arguments of Python that make one measurement of a script."""
    command = [str(SCRIPTS / script), setting.config, *(overrides or setting.overrides)]
    command += ["--what", json.dumps(what), "--device", setting.device]
    return [*command, *(["--checkpoint", setting.checkpoint] if setting.checkpoint else [])]


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
            refuse(command, errors.read())
        return output.read(), usage.ru_maxrss * 1024


def refuse(command: list[str], output: str) -> None:
    """Raise for a process that failed, with what it said last.

    Raises:
        ConfigError: where the user can fix it.
        SystemExit: else.
    """
    last = (output.splitlines() or [""])[-1]
    if last.startswith("error: "):
        raise ConfigError(last.removeprefix("error: "))
    raise SystemExit(f"{' '.join(command)} failed:\n{output[-3000:]}")
