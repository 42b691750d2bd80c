import json
import subprocess
import sys

import pytest

from pipeline.errors import ConfigError
from scripts.benchmark import find_commit, has_turn, main
from scripts.benchmark_report import append
from tests.conftest import ROOT, TINY


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["configs/none.yaml"], "error: configs/none.yaml: no such config file"),
        (["configs/reversal.yaml", "modle.d_model=8"], "unknown key modle; did you mean model?"),
        (["configs/lstm_anna.yaml"], "error: task: 'language_modeling' has no counterpart here"),
        (["configs/reversal.yaml", "--only", "theirs"], "error: --only: 'theirs' is unknown"),
        (["configs/reversal.yaml", "--baseline", "no-commit"], "error: --baseline no-commit: "),
        (["configs/reversal.yaml", "--report", "--output", "none.jsonl"], "error: --output none.jsonl: No such file"),
    ],
)
def test_a_wrong_command_is_named(arguments, message, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main([*arguments, "--parts", "starting"]) == 2
    assert message in capsys.readouterr().err


def test_decoding_needs_a_checkpoint(capsys):
    with pytest.raises(SystemExit):
        main(["configs/reversal.yaml", "--parts", "decoding"])
    assert "needs --checkpoint" in capsys.readouterr().err


def test_another_commit_may_be_a_folder(tmp_path):
    assert find_commit(str(tmp_path), tmp_path) == tmp_path
    with pytest.raises(ConfigError, match="name a commit or a folder"):
        find_commit("no-commit", tmp_path)


def test_what_is_measured_once_is_found_in_the_file(tmp_path):
    output = tmp_path / "turns.jsonl"
    facts = {"part": "decoding", "of": "a config", "contender": "generate"}
    assert not has_turn(output, facts)
    append(output, {**facts, "time": "2026-11-26 12:00:00", "numbers": {}, "machine": {}})
    assert has_turn(output, facts) and not has_turn(output, facts | {"of": "another"})


@pytest.mark.slow
def test_the_whole_benchmark(make_pairs, tmp_path):
    pytest.importorskip("ctranslate2")
    data = [f"data.path={make_pairs(rows=400)}", "data.options={}", "data.source=source", "data.target=target"]
    size = [f"model.{name}={value}" for name, value in TINY.items()]
    size += ["model.pre_norm=false", "tokenizer.vocab_size=300", "data.batch_tokens=200"]
    config = "configs/benchmark_multi30k_en_fr.yaml"
    short = ["training.max_steps=2", "training.eval_strategy=no", "training.load_best_model_at_end=false"]
    short += ["evaluation.metrics=[]", "training.save_steps=2", "training.warmup_steps=0"]
    run = [sys.executable, "scripts/train.py", config, *data, *size, *short, f"training.output_dir={tmp_path / 'run'}"]
    subprocess.run(run, cwd=ROOT, check=True, capture_output=True)
    output = tmp_path / "turns.jsonl"
    command = [sys.executable, "scripts/benchmark.py", config, *data, *size, "--seconds", "1", "--warm-up", "10", "20"]
    command += ["--parts", "training", "decoding", "saving", "starting", "memory", "loader"]
    command += ["--checkpoint", str(tmp_path / "run"), "--baseline", str(ROOT), "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    turns = [json.loads(line) for line in output.read_text().splitlines()]
    assert {turn["part"] for turn in turns} == {*command[command.index("--parts") + 1 : command.index("--checkpoint")]}
    for line in ("float32 / stock float32", "bf16 / baseline float32", "beam 5: ours float32 / CTranslate2 float32"):
        assert line in done.stdout
    assert "ours float32, beam 5: 0 of " in done.stdout
