import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.errors import ConfigError
from scripts.benchmark import main, print_table, save
from scripts.benchmark_cases import Stopwatch, count_operations
from tests.conftest import ROOT, TINY


def test_counted_operations_are_those_of_torch(make_model):
    """But for the products of attention itself, which torch counts under the kernel's name."""
    model = make_model(encoder_layers=2, decoder_layers=3, dropout=0.0).train()
    rows, source, target = 4, 7, 5
    with FlopCounterMode(display=False) as counter:
        ids = torch.randint(3, 40, (rows, source))
        model(input_ids=ids, labels=torch.randint(3, 40, (rows, target))).loss.backward()
    by_name = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
    products = sum(count for name, count in by_name.items() if name.split(".")[-1] in ("mm", "addmm"))
    assert count_operations(model.config, rows * source, rows * target) == products


def test_the_stopwatch_leaves_out_the_first_steps(monkeypatch):
    watch = Stopwatch(10)
    clock = iter(range(0, 10_000, 2))  # two seconds a step
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))
    arguments = SimpleNamespace(device=torch.device("cpu"))
    for _ in range(30):
        watch.count({"labels": torch.tensor([[5, 6, -100], [7, -100, -100]])})
        watch.on_step_end(arguments, None, None)
    assert watch.rates == [pytest.approx(1.5)] * 2


def test_the_table_shows_medians_and_ranges(capsys):
    print_table("part", {"rates": {"ours": [3.0, 1.0, 2.0]}, "ratio": 1.5})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "part"
    assert lines[2].split() == ["ours", "2", "1", "to", "3"]
    assert lines[3].split() == ["ratio", "1.5"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["configs/none.yaml"], "error: configs/none.yaml: no such config file"),
        (["configs/reversal.yaml", "modle.d_model=8"], "unknown key modle; did you mean model?"),
        (["configs/lstm_anna.yaml"], "error: task: 'language_modeling' has no counterpart here"),
    ],
)
def test_a_wrong_config_is_named(arguments, message, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main([*arguments, "--parts", "start"]) == 2
    assert message in capsys.readouterr().err


def test_an_unwritable_output_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"--output .*No such file or directory"):
        save({}, tmp_path / "no" / "numbers.json")


@pytest.mark.slow
def test_the_whole_benchmark(make_pairs, tmp_path):
    data = [f"data.path={make_pairs(rows=400)}", "data.options={}", "data.source=source", "data.target=target"]
    size = [f"model.{name}={value}" for name, value in TINY.items()]
    size += ["model.pre_norm=false", "tokenizer.vocab_size=300", "data.batch_tokens=200"]
    config = "configs/translation_multi30k_en_fr.yaml"
    short = ["training.max_steps=2", "training.eval_strategy=no", "training.load_best_model_at_end=false"]
    short += ["evaluation.metrics=[]", "training.save_steps=2", "training.warmup_steps=0"]
    run = [sys.executable, "scripts/train.py", config, *data, *size, *short, f"training.output_dir={tmp_path / 'run'}"]
    subprocess.run(run, cwd=ROOT, check=True, capture_output=True)
    command = [sys.executable, "scripts/benchmark.py", config, *data, *size, "--rounds", "1", "--steps", "20"]
    command += ["--checkpoint", str(tmp_path / "run"), "--output", str(tmp_path / "numbers.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert done.stdout.startswith("machine\n") and numbers["machine"]["torch"] == torch.__version__
    assert list(numbers) == ["machine", "training", "memory", "loader", "start", "generation"]
    assert numbers["memory"]["ours / stock"] < 0.5
    assert numbers["generation"]["5 beams"]["sentences whose ids differ when generated one by one"] == 0
