"""Training through launchers: several processes, sharding, signals. The proof is that they end as one process does."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file

from pipeline.training import checkpoints
from tests.conftest import ROOT, write_config

PYTHON = (sys.executable,)
ACCELERATE = (str(Path(sys.executable).with_name("accelerate")), "launch")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ACCELERATE_TWO = (*ACCELERATE, "--config_file", "configs/accelerate/two_cpus.yaml", "-m")
SLOW = pytest.mark.slow


def target_of(launcher: Sequence[str]) -> list[str]:
    """The script, or the command in the package where the launcher ends in -m."""
    return ["pipeline.cli", "train"] if launcher[-1] == "-m" else ["scripts/train.py"]


def launch(launcher: Sequence[str], *arguments, **options) -> subprocess.CompletedProcess[str]:
    words = [*launcher, *target_of(launcher), *map(str, arguments)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False, **options)


def sgd_config(make_config, path, pairs, **training):
    """Plain SGD, as Adam would blow up rounding where a gradient is nearly zero; two lanes on any number of ranks."""
    common = {"optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0, "max_steps": 6, "report_to": "none"}
    common |= {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2}
    training = {**common, "output_dir": str(path.with_suffix("")), **training}
    data, evaluation = {"path": str(pairs), "options": {}, "lanes": 2}, {"metrics": ["sacrebleu", "exact_match"]}
    return write_config(make_config, path, training=training, data=data, evaluation=evaluation, model={"dropout": 0.0})


def train(config, launcher, *arguments) -> Path:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = launch(launcher, config, *arguments, env=environment)
    assert done.returncode == 0, done.stderr
    return config.with_suffix("")


def assert_close(folder, expected) -> None:
    reference = load_file(expected / "model.safetensors")
    for name, tensor in load_file(folder / "model.safetensors").items():
        torch.testing.assert_close(tensor, reference[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("launcher", [ACCELERATE_TWO, pytest.param(TORCHRUN, marks=pytest.mark.slow)])
def test_two_processes_are_one(make_config, make_pairs, tmp_path, launcher):
    """Two CPU processes, by either launcher = one with twice the micro-batches: parameters, losses and scores."""
    pairs = make_pairs(held_out=7)
    expected = train(sgd_config(make_config, tmp_path / "one.yaml", pairs, gradient_accumulation_steps=4), PYTHON)
    folder = train(sgd_config(make_config, tmp_path / "two.yaml", pairs, gradient_accumulation_steps=2), launcher)
    assert_close(folder, expected)
    scores = [json.loads((run / "metrics.json").read_text()) for run in (expected, folder)]
    for split in ("validation", "test"):
        signatures = [numbers[split].pop("sacrebleu_signature") for numbers in scores]
        assert signatures[0] == signatures[1] and {"sacrebleu", "loss"} <= set(scores[1][split])
        assert scores[1][split] == pytest.approx(scores[0][split], rel=1e-5)
    histories = [
        json.loads((run / "checkpoint-6" / "trainer_state.json").read_text())["log_history"]
        for run in (expected, folder)
    ]
    for expected_log, log in zip(*histories, strict=True):
        for key in ("loss", "token_accuracy", "eval_loss", "eval_sacrebleu", "grad_norm"):
            assert log.get(key) == (None if key not in expected_log else pytest.approx(expected_log[key], rel=1e-4))


@pytest.mark.slow
def test_r_drop_on_two_processes_is_that_on_one(make_config, make_pairs, tmp_path):
    """With so small a dropout that it leaves out nothing: all passes are equal then, whatever the random numbers."""
    pairs, r_drop = make_pairs(), ["training.r_drop=5.0", "model.dropout=0.000001"]
    config = sgd_config(make_config, tmp_path / "one.yaml", pairs, gradient_accumulation_steps=2)
    expected = train(config, PYTHON, *r_drop)
    folder = train(sgd_config(make_config, tmp_path / "two.yaml", pairs), TORCHRUN, *r_drop)
    assert_close(folder, expected)
    histories = [
        json.loads((run / "checkpoint-6" / "trainer_state.json").read_text())["log_history"]
        for run in (expected, folder)
    ]
    for expected_log, log in zip(*histories, strict=True):
        assert log.get("kl_divergence", 0) == pytest.approx(0, abs=1e-6)
        assert log.get("token_accuracy") == expected_log.get("token_accuracy")


@pytest.mark.slow
def test_adversarial_training_on_two_processes_is_that_on_one(make_config, tmp_path):
    """Its inner gradient does not disturb what the processes exchange in the outer one."""
    texts = [" ".join("abcdefghij"[index % 7 : index % 7 + 2 + index % 3]) for index in range(24)]
    for split in ("train", "validation"):
        rows = [json.dumps({"source": text, "target": str(len(text.split()) % 2)}) for text in texts]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows))

    def run(launcher, accumulation: int) -> Path:
        training = {"optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0, "max_steps": 6, "save_steps": 6}
        training |= {"gradient_accumulation_steps": accumulation, "adversarial_epsilon": 0.5, "report_to": "none"}
        path = tmp_path / f"{accumulation}.yaml"
        write_config(
            partial(make_config, "text_classification"),
            path,
            training={**training, "output_dir": str(path.with_suffix("")), "per_device_train_batch_size": 2},
            data={"path": str(tmp_path), "options": {}, "lanes": 2, "test": None},
            evaluation={"metrics": []},
            model={"d_model": 16, "attention_heads": 2, "ffn_dim": 16, "dropout": 0.0, "classifier_dropout": 0.0},
        )
        return train(path, launcher)

    assert_close(run(TORCHRUN, 1), run(PYTHON, 2))


@pytest.mark.slow
@pytest.mark.parametrize("before, after", [((PYTHON, 2), (TORCHRUN, 1)), ((TORCHRUN, 1), (PYTHON, 2))])
def test_other_processes_go_on_with_the_same_rows(make_config, make_pairs, tmp_path, before, after):
    """One process with two micro-batches a step, and two with one, follow one another in either order."""
    pairs = make_pairs()
    config = sgd_config(make_config, tmp_path / "changed.yaml", pairs, lr_scheduler_type="constant")
    constant = sgd_config(make_config, tmp_path / "constant.yaml", pairs, lr_scheduler_type="constant")
    expected = train(constant, PYTHON, "training.gradient_accumulation_steps=2")
    (launcher, accumulation), (other, other_accumulation) = before, after
    train(config, launcher, f"training.gradient_accumulation_steps={accumulation}", "training.max_steps=3")
    changes = [f"training.gradient_accumulation_steps={other_accumulation}", "--accept-changes"]
    assert_close(train(config, other, *changes), expected)


@pytest.mark.slow
def test_two_machines_are_one_process(make_config, make_pairs, tmp_path):
    """On the loopback: each machine runs the same torchrun command, and they meet at an address."""
    pairs = make_pairs()
    expected = train(sgd_config(make_config, tmp_path / "one.yaml", pairs, gradient_accumulation_steps=2), PYTHON)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    config = sgd_config(make_config, tmp_path / "two.yaml", pairs)
    options = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", address]
    command = [*TORCHRUN[:3], *options, "--rdzv-id", "1", "scripts/train.py", str(config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    machines = [subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE) for _ in range(2)]
    for machine in machines:
        _, errors = machine.communicate(timeout=200)
        assert machine.returncode == 0, errors.decode()
    assert_close(config.with_suffix(""), expected)


def test_slurm_starts_every_node(tmp_path):
    """The script with stand-ins for Slurm's commands and the launcher, on the second of two nodes."""
    commands = {
        "scontrol": 'printf "node1\\nnode2\\n"',
        "srun": 'shift; exec "$@"',
        "accelerate": 'printf "%s\\n" "$@"',
    }
    for name, body in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environment |= {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "SLURM_NODEID": "1"}
    words = ["configs/accelerate/slurm.sh", "my config.yaml", "training.max_steps=5"]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    options = {"--num_machines": "2", "--num_processes": "16", "--machine_rank": "1", "--main_process_ip": "node1"}
    given = done.stdout.splitlines()
    assert {name: given[given.index(name) + 1] for name in options} == options
    assert given[given.index("-m") :] == ["-m", "pipeline.cli", "train", *words[1:]]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [4, 8])
def test_many_processes_are_one(make_config, make_pairs, tmp_path, processes):
    """Four lanes on one process, on four, and on eight, which prepare each lane twice."""
    pairs = make_pairs()
    lanes = ["data.lanes=4", "training.lr_scheduler_type=constant"]
    expected = train(
        sgd_config(make_config, tmp_path / "one.yaml", pairs, gradient_accumulation_steps=8), PYTHON, *lanes
    )
    config = sgd_config(make_config, tmp_path / "many.yaml", pairs, gradient_accumulation_steps=8 // processes)
    launcher = [*TORCHRUN[:-1], str(processes)]
    train(config, launcher, "training.max_steps=3", *lanes)
    assert_close(train(config, launcher, "--accept-changes", *lanes), expected)


@pytest.mark.slow
def test_two_processes_generate_and_score_as_one(make_config, make_pairs, tmp_path):
    """Once each, in the order of the texts."""
    pairs = make_pairs(held_out=7)
    folder = train(sgd_config(make_config, tmp_path / "one.yaml", pairs), PYTHON)
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(f"{'a b c d e f g'[: 1 + index]}" for index in range(11)) + "\n\nh i\n")
    for words in (["generate", folder, "--file", texts, "--batch-size", 2], ["score", folder, "--batch-size", 2]):
        one, two = (
            subprocess.run(
                [*launcher, "-m", "pipeline.cli", *map(str, words)],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=200,
                check=True,
            )
            for launcher in (PYTHON, [*TORCHRUN[:-1], "2"])
        )
        assert one.stdout == two.stdout and len(one.stdout) > 10


@pytest.mark.slow
def test_a_bad_row_of_one_process_ends_all(make_config, make_pairs, tmp_path):
    """Within seconds, each with the message of the one that met it."""
    pairs = make_pairs(rows=400)
    lines = (pairs / "train.jsonl").read_text().splitlines()
    lines[-1] = '{"source": "a"}'  # far behind what a rehearsal reads
    (pairs / "train.jsonl").write_text("\n".join(lines) + "\n")
    config = sgd_config(make_config, tmp_path / "run.yaml", pairs)
    begin = time.monotonic()
    options = ["training.max_steps=500", "data.streaming=true", "data.shuffle_window=10"]
    done = launch([*TORCHRUN[:-1], "2"], config, *options)
    assert done.returncode != 0 and time.monotonic() - begin < 90
    assert done.stderr.count("train.jsonl:400: there is no column 'target'") == 2, done.stderr


# Accelerate turns FSDP on only for GPUs; torch shards on CPUs as well.
# https://github.com/huggingface/accelerate/blob/v1.15.0/src/accelerate/state.py (AcceleratorState)
FSDP_ON_CPU = """
import runpy, sys
from accelerate.state import DistributedType, PartialState

original = PartialState.__init__

def init(self, *args, **kwargs):
    original(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU

PartialState.__init__ = init
runpy.run_module("pipeline.cli", run_name="__main__")
"""


@pytest.mark.slow
def test_fsdp2_is_one_process(make_config, make_pairs, tmp_path):
    """With the settings of the shipped config: the same parameters and scores, saved whole, resumed, and with the best
    model loaded at the end."""
    pairs = make_pairs(held_out=7)
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
    best |= {
        "optim": "adamw_torch",
        "learning_rate": 0.01,
        "adam_epsilon": 1e-2,
    }  # torch resumes no optimizer without state
    expected = train(
        sgd_config(make_config, tmp_path / "one.yaml", pairs, gradient_accumulation_steps=2, **best), PYTHON
    )
    options = launch_command_parser().parse_args(
        ["--config_file", "configs/accelerate/fsdp2.yaml", "--num_processes", "2", "--mixed_precision", "no", "-"]
    )
    environment = prepare_multi_gpu_env(_validate_launch_command(options)[0])
    assert environment["FSDP_VERSION"] == "2" and environment["ACCELERATE_USE_FSDP"] == "true"
    (tmp_path / "driver.py").write_text(FSDP_ON_CPU)
    config = sgd_config(make_config, tmp_path / "sharded.yaml", pairs, **best)
    folder = config.with_suffix("")

    def train_sharded():
        words = [*TORCHRUN, tmp_path / "driver.py", "train", config]
        done = subprocess.run(
            [str(word) for word in words], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False,
            env={**environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert_close(folder, expected)

    train_sharded()
    scores = [json.loads((run / "metrics.json").read_text())["test"] for run in (expected, folder)]
    for numbers in scores:
        numbers.pop("sacrebleu_signature")
    assert scores[1] == pytest.approx(scores[0], rel=1e-5)
    names = {path.name for path in (folder / "checkpoint-6").iterdir()}
    assert "modeling_seq2seq.py" in names and not any("fsdp" in name for name in names)
    for name in ("metrics.json", "model.safetensors"):
        (folder / name).unlink()
    shutil.rmtree(folder / "checkpoint-6")
    train_sharded()


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_configs_are_read(path):
    """By `accelerate launch` itself, which names keys that it does not know."""
    config = load_config_from_file(str(path))
    assert config.num_processes >= 1
    arguments = launch_command_parser().parse_args(["--config_file", str(path), "script.py"])
    arguments, _, _ = _validate_launch_command(arguments)
    assert arguments.num_processes == config.num_processes


def wait_until(condition, patience: float = 120) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.mark.parametrize(
    "launcher, number, code",
    [
        (PYTHON, signal.SIGTERM, 75),
        pytest.param(PYTHON, signal.SIGINT, 75, marks=SLOW),
        pytest.param((*ACCELERATE, "-m"), signal.SIGTERM, -signal.SIGTERM, marks=SLOW),
        pytest.param(ACCELERATE, signal.SIGTERM, -signal.SIGTERM, marks=SLOW),
        pytest.param((*ACCELERATE, "-m"), signal.SIGINT, -signal.SIGINT, marks=SLOW),
        pytest.param(ACCELERATE, signal.SIGINT, -signal.SIGINT, marks=SLOW),
        pytest.param(ACCELERATE, signal.SIGKILL, -signal.SIGKILL, marks=SLOW),
        pytest.param(TORCHRUN, signal.SIGTERM, 1, marks=SLOW),
        pytest.param(TORCHRUN, signal.SIGINT, 1, marks=SLOW),
    ],
)
def test_a_signal_to_the_launcher_stops_and_saves(make_config, tmp_path, launcher, number, code):
    """The launcher has its own exit code; what counts is that the run behind it is saved."""
    training = {"max_steps": 10**6, "save_steps": 10**6, "save_total_limit": 1, "eval_strategy": "no", "use_cpu": True}
    training |= {"logging_steps": 5, "report_to": "none"}
    config = write_config(make_config, tmp_path / "run.yaml", training=training)
    log, folder = tmp_path / "log", tmp_path / "run"
    with log.open("w") as stream:
        started = subprocess.Popen(
            [*launcher, *target_of(launcher), str(config)],
            cwd=ROOT,
            stdout=stream,
            stderr=stream,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        try:
            wait_until(lambda: "'loss'" in log.read_text() or started.poll() is not None)
            started.send_signal(number)
            assert started.wait(120) == code, log.read_text()
            wait_until(lambda: "stopped and saved after step" in log.read_text())
        finally:
            started.kill()
    assert checkpoints.find_newest(folder), log.read_text()
    assert not (folder / "metrics.json").exists()


@SLOW
def test_a_rehearsal_changes_nothing_on_two_processes(make_config, make_pairs, tmp_path, monkeypatch):
    """Weights, optimizer and position in the data are those of a run that went on from step 0 without one."""
    pairs = make_pairs(held_out=7)
    folders = []
    for name in ("with", "without"):
        config = sgd_config(make_config, tmp_path / f"{name}.yaml", pairs, save_steps=3)
        if name == "without":
            # A run that goes on is not rehearsed; there is no other way to leave it out.
            code = "import pipeline.run as run; run.rehearse = lambda scene: []; from pipeline.cli import main; "
            script = tmp_path / "without.py"
            script.write_text(f"{code}import sys; sys.exit(main(['train', *sys.argv[1:]]))")
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            subprocess.run([*TORCHRUN, str(script), str(config)], cwd=ROOT, env=environment, check=True, timeout=200)
            folders.append(config.with_suffix(""))
        else:
            folders.append(train(config, TORCHRUN))
    for file in ("model.safetensors", "checkpoint-6/run_state.json", "checkpoint-6/optimizer.pt", "metrics.json"):
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes(), file
