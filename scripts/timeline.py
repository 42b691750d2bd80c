"""Run `teacher-forcing train` with a stopwatch on its parts: scripts/timeline.py CONFIG [section.key=value ...] [--start]

The last line is JSON: `start`, the seconds of each part from the start of this process to the end of the first step,
in the order in which they began, without the parts inside them; `steps` and `saves`, the seconds of each. With --start
the process ends behind its first step, in the middle of the run.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipeline.cli import main as run_command
from pipeline.commands.process import quick_imports

OTHER = "everything else"
PARTS = {  # a function, where its callers look for it -> the part that it is, from the outside in
    "pipeline.tasks.config_loading.load_config": "config",
    "pipeline.run.training_arguments": "training arguments",
    "pipeline.run.load_metrics": "metrics",
    "pipeline.run.find_start": "where to go on: fingerprints, manifest",
    "pipeline.run.open_splits": "data opening",
    "pipeline.run.prepare_tokenizer": "tokenizer",
    "pipeline.run.build_model": "model",
    "pipeline.run.encode_held_out": "held-out rows",
    "pipeline.run.build_trainer": "trainer",
    "pipeline.run.rehearse": "rehearsal",
    "pipeline.run.RunFolder.begin": "run's folder",
    "pipeline.training.trainer.TeacherForcingTrainer.train": "Trainer.train, up to the first step",
    "pipeline.data.batch_stream.BatchStream._make_window": "first window",
}


class Timeline:
    """Seconds of parts, each without those inside it.

    Attributes:
        seconds: by part, from the start of the process on.
        is_running: whether the first step is not yet done.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.is_running = True
        self._open = [OTHER]
        self._last = time.clock_gettime(time.CLOCK_BOOTTIME) - _process_start()  # of the clock, since the start
        self._begin = time.perf_counter() - self._last
        self._last = 0.0

    def switch(self) -> None:
        """Add what passed since the last switch to the part that is open."""
        if self.is_running:
            now = time.perf_counter() - self._begin
            self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + now - self._last
            self._last = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self.switch()
        self._open.append(name)
        self.seconds.setdefault(name, 0.0)
        try:
            yield
        finally:
            self.switch()
            self._open.pop()

    def stop(self) -> None:
        self.switch()
        self.is_running = False


def _process_start() -> float:
    """Return when this process began, in seconds since the machine did; see proc(5)."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    timeline = Timeline()
    words = [word for word in sys.argv[1:] if word != "--start"]
    steps: list[float] = []
    saves: list[float] = []
    with timeline.part("imports"), quick_imports():
        from transformers import TrainerCallback

        import pipeline.run  # noqa: F401
        from pipeline.training.trainer import TeacherForcingTrainer

    class Steps(TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.begin = time.perf_counter()
            self.part = timeline.part("first step")
            self.part.__enter__()

        def on_step_end(self, *_, **__):
            steps.append(time.perf_counter() - self.begin)
            self.part.__exit__(None, None, None)
            timeline.stop()
            if len(words) < len(sys.argv) - 1:
                report()
                os._exit(0)

    def report() -> None:
        print(json.dumps({"start": timeline.seconds, "steps": steps, "saves": saves}), flush=True)

    def with_steps(init: Callable[..., None]) -> Callable[..., None]:
        def call(self: Any, *arguments: Any, callbacks: Any = (), **settings: Any) -> None:
            init(self, *arguments, callbacks=[*callbacks, Steps()], **settings)

        return call

    def with_seconds(save: Callable[..., None]) -> Callable[..., None]:
        def call(self: Any) -> None:
            begin = time.perf_counter()
            save(self)
            saves.append(time.perf_counter() - begin)

        return call

    def as_part(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **settings: Any) -> Any:
            with timeline.part(name):
                return function(*arguments, **settings)

        return call

    for path, name in PARTS.items():
        replace(path, lambda function, name=name: as_part(function, name))
    TeacherForcingTrainer.__init__ = with_steps(TeacherForcingTrainer.__init__)  # type: ignore[method-assign]
    TeacherForcingTrainer.save_checkpoint = with_seconds(TeacherForcingTrainer.save_checkpoint)  # type: ignore[method-assign]
    code = run_command(["train", *words])
    report()
    return code


def replace(path: str, change: Callable[[Any], Any]) -> None:
    """Put `change(function)` in the place of a function that a module, or a class in it, has."""
    owner_path, _, name = path.rpartition(".")
    module = next(path for path in parents(owner_path) if path in sys.modules)
    owner: Any = sys.modules[module]
    for part in owner_path.removeprefix(module).split(".")[1:]:
        owner = getattr(owner, part)
    setattr(owner, name, change(getattr(owner, name)))


def parents(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition(".")[0]


if __name__ == "__main__":
    sys.exit(main())
