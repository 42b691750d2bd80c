"""Kill a training by SIGKILL at random moments, and run the same command again: scripts/check_recovery.py [--kills 30]

Every second kill comes while a checkpoint is being written. The table says how many runs went on to the end, and how
many ended with exactly the weights of the run that nothing disturbed. The exit code is 1 if any did not.
"""

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from pipeline.commands.arguments import positive
from pipeline.run_folder import METRICS_FILE
from pipeline.training.checkpoints import STAGING_FOLDER, list_checkpoints, step_of

SAVES = 15
SAVE_STEPS = 10
SETTINGS = [
    "data.options.rows=2000",
    "data.options.held_out=100",
    "model.dropout=0.1",
    "training.eval_strategy=no",
    "training.load_best_model_at_end=false",
    f"training.max_steps={SAVE_STEPS * SAVES}",
    f"training.save_steps={SAVE_STEPS}",
    "training.use_cpu=true",
    "training.report_to=none",
]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=positive, metavar="N", default=30)
    parser.add_argument("--processes", type=positive, metavar="N", default=1, help="by torchrun, if more than one")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args(argv)
    moments = random.Random(arguments.seed)
    counts: dict[str, Counter] = {}
    with tempfile.TemporaryDirectory() as folder:
        begin = time.monotonic()
        if start(Path(folder, "undisturbed"), arguments.processes).wait() != 0:
            sys.exit(Path(folder, "undisturbed.log").read_text())
        duration = time.monotonic() - begin
        expected = weights(Path(folder, "undisturbed"))
        for number in range(arguments.kills):
            output_dir = Path(folder, str(number))
            run = start(output_dir, arguments.processes)
            if number % 2:
                wait_for_save(run, output_dir, moments.randrange(SAVES))
                time.sleep(moments.uniform(0, 0.02))
            else:
                time.sleep(moments.uniform(0, duration))
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
            moment = describe(output_dir)
            code = start(output_dir, arguments.processes).wait()
            is_equal = code == 0 and weights(output_dir) == expected
            counts.setdefault(moment, Counter()).update(kills=1, finished=int(code == 0), identical=int(is_equal))
            print(
                f"{number + 1}: killed {moment}, exit code of the next run {code}, equal weights: {is_equal}",
                flush=True,
            )
    total = sum(counts.values(), Counter())
    print("\n| killed | times | finished by the same command | weights bit-identical |\n|---|---|---|---|")
    for moment, count in [*sorted(counts.items()), ("in all", total)]:
        print(f"| {moment} | {count['kills']} | {count['finished']} | {count['identical']} |")
    return 0 if total["identical"] == arguments.kills else 1


def start(output_dir: Path, processes: int) -> subprocess.Popen:
    """Start the training as the leader of a process group, so that all its processes are killed at once."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    with output_dir.with_suffix(".log").open("w") as log:
        return subprocess.Popen(
            [
                sys.executable,
                *(launcher if processes > 1 else []),
                "scripts/train.py",
                "configs/reversal.yaml",
                *SETTINGS,
                f"training.output_dir={output_dir}",
            ],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={"OMP_NUM_THREADS": "1", **os.environ},  # sums in one order
        )


def wait_for_save(run: subprocess.Popen, output_dir: Path, number: int) -> None:
    """Wait until the checkpoint with this number, from 0, begins to be written, or the run has ended."""
    while run.poll() is None:
        newest = next(map(step_of, list_checkpoints(output_dir)), 0)
        if newest >= SAVE_STEPS * number and (output_dir / STAGING_FOLDER).exists():
            return
        time.sleep(0.001)


def describe(output_dir: Path) -> str:
    """Say in which moment the run of this folder was killed."""
    if (output_dir / STAGING_FOLDER).exists():
        return "while saving"
    if (output_dir / METRICS_FILE).exists():
        return "after the end"
    checkpoints = len(list_checkpoints(output_dir))
    return "before the first checkpoint" if not checkpoints else "between checkpoints"


def weights(output_dir: Path) -> str:
    return hashlib.sha256((output_dir / "model.safetensors").read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
