"""Run `teacher-forcing train` with a stopwatch on its parts:

    scripts/timeline.py CONFIG [section.key=value ...] [--start]

The last line is JSON: `start`, the seconds of each part from the start of this process to the end of the first step,
in the order in which they began, without the parts inside them; `steps` and `saves`, the seconds of each. With --start
the process ends behind its first step, in the middle of the run.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipeline.cli import main as run_command
from pipeline.commands.process import quick_imports

OTHER, IMPORTS, FIRST_STEP = "everything else", "imports", "first step"
PARTS = {  # a function, as (module, path) where its callers look for it -> the part that it is
    ("pipeline.tasks.config_loading", "load_config"): "config",
    ("pipeline.run", "training_arguments"): "training arguments",
    ("pipeline.run", "load_metrics"): "metrics",
    ("pipeline.run", "find_start"): "where to go on: fingerprints, manifest",
    ("pipeline.run", "open_splits"): "data opening",
    ("pipeline.run", "prepare_tokenizer"): "tokenizer",
    ("pipeline.run", "build_model"): "model",
    ("pipeline.run", "encode_held_out"): "held-out rows",
    ("pipeline.run", "build_trainer"): "trainer",
    ("pipeline.run", "rehearse"): "rehearsal",
    ("pipeline.run", "RunFolder.begin"): "the run's folder",
    ("pipeline.training.trainer", "TeacherForcingTrainer.train"): "Trainer.train, up to the first step",
    ("pipeline.data.batch_stream", "BatchStream._make_window"): "first window",
    ("pipeline.training.trainer", "TeacherForcingTrainer.training_step"): FIRST_STEP,
}
STEP_END = ("pipeline.training.step_guard", "StepGuard.on_step_end")
SAVE = ("pipeline.training.trainer", "TeacherForcingTrainer.save_checkpoint")


class Timeline:
    """Seconds of the parts of a run's start, each without those inside it, and of its steps and saves."""

    def __init__(self) -> None:
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - process_start()
        self.parts: dict[str, float] = {}
        self.steps: list[float] = []
        self.saves: list[float] = []
        self._open = [OTHER]
        self._last = time.perf_counter() - age
        self._step_begin = 0.0  # 0 between steps

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure a part, until the first step is done; parts inside it are left out."""
        self._switch(name)
        if name == FIRST_STEP:
            self._step_begin = self._step_begin or self._last
        yield
        self._switch(None)

    def end_step(self) -> None:
        """Measure a step, from its first batch on the model to here."""
        seconds = time.perf_counter() - self._step_begin
        self._step_begin = 0.0
        if not self.steps:
            self.parts[FIRST_STEP] = seconds  # with the optimizer
        self.steps.append(seconds)

    def _switch(self, name: str | None) -> None:
        """Add what passed to the part that is open, and open another, or return to the one around it."""
        now = time.perf_counter()
        if not self.steps:
            self.parts[self._open[-1]] = self.parts.get(self._open[-1], 0.0) + now - self._last
        self._last = now
        if name is None:
            self._open.pop()
        else:
            self._open.append(name)

    def as_json(self) -> str:
        return json.dumps({"start": self.parts, "steps": self.steps, "saves": self.saves})


def process_start() -> float:
    """Return when this process began, in seconds since the machine did; see proc(5)."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def wrap(place: tuple[str, str], make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Put `make(function)` in the place of a function of a module, or of a class in it."""
    owner: Any = import_module(place[0])
    *owners, name = place[1].split(".")
    for part in owners:
        owner = getattr(owner, part)
    setattr(owner, name, make(getattr(owner, name)))


def watch(timeline: Timeline, ends_behind_first_step: bool) -> None:
    """Wrap what a run calls, so that it tells the timeline."""

    def measured(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def make(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **settings: Any) -> Any:
                with timeline.part(name):
                    return function(*arguments, **settings)

            return call

        return make

    def ending_step(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **settings: Any) -> Any:
            timeline.end_step()
            if ends_behind_first_step:
                print(timeline.as_json(), flush=True)
                os._exit(0)
            return function(*arguments, **settings)

        return call

    def saving(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            begin = time.perf_counter()
            result = function(*arguments)
            timeline.saves.append(time.perf_counter() - begin)
            return result

        return call

    for place, name in PARTS.items():
        wrap(place, measured(name))
    wrap(STEP_END, ending_step)
    wrap(SAVE, saving)


def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else list(argv)
    timeline = Timeline()
    with timeline.part(IMPORTS), quick_imports():
        import pipeline.run  # noqa: F401
    watch(timeline, "--start" in words)
    code = run_command(["train", *(word for word in words if word != "--start")])
    print(timeline.as_json())
    return code


if __name__ == "__main__":
    sys.exit(main())
