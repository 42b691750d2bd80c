"""The main job as a user runs it: the embedded default must be learned."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def test_reversal_is_learned(tmp_path):
    """In 600 of the 1,000 steps of `make train`; 500 were enough with each of three seeds."""
    launcher = Path(sys.executable).with_name("accelerate")
    output = f"training.output_dir={tmp_path / 'reversal'}"
    done = subprocess.run(
        [launcher, "launch", "scripts/train.py", "configs/reversal.yaml", "training.max_steps=600", output],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{launcher.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    scores = json.loads((tmp_path / "reversal" / "metrics.json").read_text())["test"]
    assert scores["token_accuracy"] >= 0.999 and scores["exact_match"] >= 0.99
    example = "5 12 3 8 15 2 9 6 11 4"
    answer = subprocess.run(
        [sys.executable, "scripts/generate.py", str(tmp_path / "reversal"), example],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.strip() == "4 11 6 9 2 15 8 3 12 5"
