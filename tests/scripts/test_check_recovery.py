"""The trial by kills names its moments, and finds that a run killed anywhere ends as if nothing had happened."""

import hashlib
import subprocess
import sys

import pytest

from pipeline.run_folder import METRICS_FILE
from pipeline.training.checkpoints import STAGING_FOLDER
from scripts.check_recovery import describe, wait_for_save, weights
from tests.conftest import ROOT


def test_moments_are_told_apart_by_what_lies_in_the_folder(tmp_path):
    assert describe(tmp_path) == "before the first checkpoint"
    (tmp_path / "checkpoint-10").mkdir()
    assert describe(tmp_path) == "between checkpoints"
    (tmp_path / METRICS_FILE).touch()
    assert describe(tmp_path) == "after the end"
    (tmp_path / STAGING_FOLDER).mkdir()
    assert describe(tmp_path) == "while saving"


def test_the_wait_ends_at_a_save_or_with_the_run(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as run:
        (tmp_path / "checkpoint-20").mkdir()
        (tmp_path / STAGING_FOLDER).mkdir()
        wait_for_save(run, tmp_path, 2)
        assert run.poll() is None
        run.kill()
        wait_for_save(run, tmp_path, 14)


def test_weights_are_compared_by_content(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert weights(tmp_path) == hashlib.sha256(b"weights").hexdigest()


@pytest.mark.slow
def test_two_kills_cost_nothing():
    """One at any moment, one while a checkpoint is written."""
    command = [sys.executable, "scripts/check_recovery.py", "--kills", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| in all | 2 | 2 | 2 |" in done.stdout
