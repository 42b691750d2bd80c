"""The GPU check: a part that fails, hangs or is not possible is reported as such. At tiny sizes all run on a CPU."""

import json
import os
import subprocess
import sys
from functools import partial

import pytest

from scripts.check_gpu import (
    FAILED,
    MINUTES,
    NOT_POSSIBLE,
    OK,
    PARTS,
    Part,
    Result,
    check,
    check_all,
    main,
    start,
    write,
)
from scripts.check_gpu_parts import Failed, NotPossible, Setup
from tests.conftest import ROOT


@pytest.fixture
def setup(tmp_path) -> Setup:
    return Setup("cpu", True, None, tmp_path)


@pytest.mark.parametrize("name", PARTS)
def test_each_part_says_what_it_checks_and_ends_in_time(name):
    function = PARTS[name].check
    function = function.func if isinstance(function, partial) else function
    assert function.__doc__
    assert 0 < PARTS[name].seconds < MINUTES * 60


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (None, OK, ""),
        (Failed("2 is not 3"), FAILED, "2 is not 3"),
        (NotPossible("no such kernel"), NOT_POSSIBLE, "no such kernel"),
        (ModuleNotFoundError("No module", name="datasets"), NOT_POSSIBLE, "datasets is not installed; --help tells"),
        (IndexError("a bug"), FAILED, "IndexError: a bug"),
    ],
)
def test_a_part_keeps_its_figures_however_it_ends(setup, error, status, reason):
    def part(setup, figures):
        figures["loss"] = 0.5
        if error is not None:
            raise error

    result = check(Part(part, 1), setup)
    assert (result.status, result.figures) == (status, {"loss": 0.5})
    assert result.reason.startswith(reason) and bool(result.reason) == bool(reason)


def run(tmp_path, code: str, seconds: float = 30.0) -> Result:
    """Start a process that runs `code`, with the folder for its result as `folder`."""
    own = tmp_path / "0"
    own.mkdir()
    return start([sys.executable, "-c", f"folder = {str(own)!r}\n{code}"], seconds, own, "cpu")


def test_a_part_that_hangs_is_ended_with_all_it_started(tmp_path):
    code = """
import subprocess, time
child = subprocess.Popen(["sleep", "60"])
open(folder + "/child", "w").write(str(child.pid))
print("begun", flush=True)
time.sleep(60)"""
    result = run(tmp_path, code, seconds=1)
    assert (result.status, result.reason, result.log) == (FAILED, "no result within 1 seconds", "begun\n")
    child = int((tmp_path / "0" / "child").read_text())
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(child)], capture_output=True, text=True, check=False).stdout
    assert not state or state.startswith("Z")  # gone, or nobody has asked for its exit code yet


def test_a_part_that_crashes_fails_with_what_it_printed(tmp_path):
    result = run(tmp_path, "import os; print('last words', flush=True); os.abort()")
    assert (result.status, result.log) == (FAILED, "last words\n")
    assert result.reason == "its process ended with -6, without a result"


def test_a_result_is_read_and_the_cpu_hides_the_gpus(tmp_path):
    code = """
import json, os
figures = {"gpus": os.environ["CUDA_VISIBLE_DEVICES"]}
json.dump({"status": "ok", "figures": figures}, open(folder + "/result.json", "w"))"""
    result = run(tmp_path, code)
    assert (result.status, result.figures, result.log) == (OK, {"gpus": ""}, "")
    assert result.seconds > 0


def test_results_are_written_as_json_and_as_a_table(tmp_path):
    figures = {"ratio": 3.14159, "equal": True, "sizes": 5, "curve": [1.0, 2.0]}
    results = {"rate": Result(OK, figures=figures, seconds=12.4), "flex": Result(NOT_POSSIBLE, "a | b\nc")}
    write(results, tmp_path / "out")
    assert json.loads((tmp_path / "out.json").read_text())["rate"]["figures"] == figures
    assert (tmp_path / "out.md").read_text().splitlines() == [
        "| part | result | figures | seconds |",
        "|---|---|---|---|",
        "| rate | ok | ratio 3.142; equal yes; sizes 5 | 12 |",
        "| flex | not possible here: a \\| b c |  | 0 |",
    ]
    assert sorted(os.listdir(tmp_path)) == ["out.json", "out.md"]


def test_results_are_written_after_each_part_until_the_time_is_over(tmp_path, monkeypatch, capsys):
    """A part fails, one gets less than its time and uses it up, and for one no time is left."""
    clock = iter([0.0, 0.0, 450.0, 500.0])  # at the beginning, and before each part
    monkeypatch.setattr("scripts.check_gpu.time.monotonic", lambda: next(clock))
    took = iter([5.0, 30.0])
    monkeypatch.setattr("scripts.check_gpu.start", lambda *_: Result(FAILED, "a reason", seconds=next(took)))
    output = tmp_path / "new" / "out"
    assert check_all(["machine", "generation", "packed as padded"], [], "cpu", output, MINUTES * 60) == 1
    values = json.loads(output.with_suffix(".json").read_text())
    assert [value["status"] for value in values.values()] == [FAILED, NOT_POSSIBLE, NOT_POSSIBLE]
    assert values["generation"]["reason"] == "too little time was left; --parts 'generation' runs only this one"
    assert capsys.readouterr().out.startswith("| machine | failed: a reason |")


def test_a_gpu_that_is_not_there_is_named(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        main(["--device", "cuda"])
    assert "--device cuda: torch finds no GPU here" in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_check(tmp_path):
    command = [sys.executable, "scripts/check_gpu.py", "--device", "cpu", "--minutes", "32"]  # four times as long each
    command += ["--output", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=2000)
    results = json.loads((tmp_path / "out.json").read_text())
    assert done.returncode == 0, (done.stderr, results)
    assert list(results) == list(PARTS)
    impossible = {name: result["reason"] for name, result in results.items() if result["status"] != OK}
    assert list(impossible) == ["packed as padded"]
    assert impossible["packed as padded"].startswith("FlexAttention has no gradients on a CPU")
    assert results["SIGTERM and resume"]["figures"]["bit-identical"]
