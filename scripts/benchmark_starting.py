"""What a run takes besides training: its start, and its checkpoints. `scripts/timeline.py` has the stopwatches."""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from scripts.benchmark_setting import SCRIPTS, Contenders, Numbers, Setting, execute

TIMELINE = str(SCRIPTS / "timeline.py")
TRAINER = "import torch, transformers; transformers.Seq2SeqTrainer"
TOKENIZER, REHEARSAL, WINDOW = "tokenizer", "rehearsal", "first window"  # parts of a start
LAST_SAVE = 10  # step at which a run is killed that is then resumed
STEPS_A_SAVE = 100
WITHOUT_EVALUATION = ["training.eval_strategy=no", "training.load_best_model_at_end=false", "training.report_to=none"]
LARGE = (  # 55 million parameters
    *("model.d_model=512", "model.ffn_dim=2048", "model.encoder_layers=6", "model.decoder_layers=6"),
    *("tokenizer.vocab_size=32000", "data.shuffle_window=2000"),
)


def starting_contenders(setting: Setting) -> Contenders:
    """Return a new run, and one that goes on from a checkpoint, up to the end of their first step."""
    return {"fresh": partial(start_fresh, setting), "resumed": partial(start_again, setting)}


def saving_contenders(setting: Setting) -> Contenders:
    return {"saving": partial(save, setting)}


def start_fresh(setting: Setting) -> Numbers:
    """Measure a run in a new folder, which trains its tokenizer where the config names none; that is not counted."""
    parts = run_timeline([*start_command(setting, Path(tempfile.mkdtemp(dir=setting.folder))), "--start"])["start"]
    return describe_start(parts, not_counted=(TOKENIZER, REHEARSAL))


def start_again(setting: Setting) -> Numbers:
    """Measure a run that was killed behind a checkpoint."""
    killed = setting.folder / "killed"
    if not killed.is_dir():
        make_killed_run(start_command(setting, killed), killed)
    folder = Path(tempfile.mkdtemp(dir=setting.folder)) / "run"
    shutil.copytree(killed, folder)
    parts = run_timeline([*start_command(setting, folder), "--start"])["start"]
    return describe_start(parts, not_counted=(REHEARSAL,))


def describe_start(parts: dict[str, float], not_counted: tuple[str, ...]) -> Numbers:
    """Compare a start with importing Trainer in a new process, now, and encoding the first window."""
    begin = time.perf_counter()
    execute(["-c", TRAINER])
    imports = time.perf_counter() - begin
    counted = sum(seconds for name, seconds in parts.items() if name not in not_counted)
    return {
        "counted / (import Trainer + first window)": counted / (imports + parts.get(WINDOW, 0.0)),  # goal: <= 1.3
        "import Trainer, s": imports,
        "in all, s": sum(parts.values()),
        "counted, s": counted,
        **{f"  {name}, s": seconds for name, seconds in parts.items()},
    }


def save(setting: Setting) -> Numbers:
    """Measure the share of a training's time that its saves take, at 55 million parameters and a save every 100 steps.

    Steps have the config's own `data.batch_tokens`; saves follow upon smaller ones, so that there are several soon.
    """
    large = Setting(setting.config, (*LARGE, *setting.overrides), setting.device, setting.folder)
    held_out = ["data.validation=null", "data.test=null", "evaluation.metrics=[]", *WITHOUT_EVALUATION]
    command = [TIMELINE, large.config, *large.overrides, f"tokenizer.path={large.tokenizer('large')}", *held_out]

    def run(*overrides: str) -> dict[str, list[float]]:
        return run_timeline([*command, *overrides, f"training.output_dir={tempfile.mkdtemp(dir=setting.folder)}"])

    step = statistics.median(run("training.max_steps=4", "training.save_steps=100")["steps"][1:])
    saves = run("data.batch_tokens=256", "training.max_steps=6", "training.save_steps=2")["saves"]
    share = statistics.median(saves) / (STEPS_A_SAVE * step + statistics.median(saves))
    return {"share of the time": share, "a save, s": statistics.median(saves), "a step, s": step}  # goal: <= 0.01


def start_command(setting: Setting, folder: Path) -> list[str]:
    overrides = [*WITHOUT_EVALUATION, f"training.save_steps={LAST_SAVE}", f"training.output_dir={folder}"]
    return [TIMELINE, setting.config, *setting.overrides, *overrides]


def make_killed_run(command: list[str], folder: Path) -> None:
    """Run until the checkpoint of step `LAST_SAVE` is there, and kill the run."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen([sys.executable, *command], stdout=output, stderr=subprocess.STDOUT)
        while not (folder / f"checkpoint-{LAST_SAVE}").is_dir():
            if process.poll() is not None:
                output.seek(0)
                raise SystemExit(f"{' '.join(command)} ended without a checkpoint:\n{output.read()[-3000:]}")
            time.sleep(0.05)
        process.kill()
        process.wait()


def run_timeline(command: list[str]) -> dict:
    return json.loads(execute(command)[0].splitlines()[-1])
