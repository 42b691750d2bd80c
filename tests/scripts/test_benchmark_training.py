import os
import sys
from types import SimpleNamespace

import pytest

from pipeline.errors import ConfigError
from scripts.benchmark_setting import Setting
from scripts.benchmark_training import MEMORY, RATE, Stretch, Training, is_warm, mean_rate, read_log, take_turn

LOGS = """
import os, time
print("a line of something else", os.getpid())
for number in range(100):
    print({{"loss": "7.1", "items_per_second": {rate}}})
    time.sleep(0.005)
time.sleep(60)
"""


def training(code):
    return lambda: Training([sys.executable, "-c", code], read_log)


def setting(tmp_path):
    return Setting("a.yaml", (), "cpu", tmp_path, warm_up=(10, 30), seconds=0.05)


def test_a_training_is_measured_behind_its_warm_up_and_killed(tmp_path):
    seen = []

    def read(line):
        seen.append(line)
        return read_log(line)

    make = training(LOGS.format(rate="'1000.0' if number < 6 else '4000.0'"))
    numbers = take_turn(lambda: Training(make().command, read), setting(tmp_path))
    assert numbers[RATE] == pytest.approx(4000) and numbers["rate of the warm-up"] == pytest.approx(1000)
    assert numbers["steps of warm-up"] == 30 and numbers[MEMORY] > 5
    with pytest.raises(ProcessLookupError):
        os.kill(int(seen[0].split()[-1]), 0)


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [("raise KeyError('x')", SystemExit, "KeyError"), ("print('error: no data')", ConfigError, "^no data$")],
)
def test_a_training_that_ends_too_soon_is_an_error(code, error, message, tmp_path):
    with pytest.raises(error, match=message):
        take_turn(training(code), setting(tmp_path))


@pytest.mark.parametrize(
    ("rates", "is_over"),
    [
        ([1] * 9, True),  # two stretches of four logs, of five steps each, behind the first log
        ([1] * 8, False),
        ([1] * 5 + [1.03] * 4, False),
        ([1] * 5 + [1.03] * 8, True),
        ([1.1**number for number in range(19)], False),
        ([1.1**number for number in range(20)], True),  # as the most is reached
    ],
)
def test_a_warm_up_is_over_when_the_rate_settles(rates, is_over):
    assert is_warm([Stretch(1.0, rate) for rate in rates], (40, 100)) == is_over


def test_a_mean_rate_is_of_all_tokens_by_all_seconds():
    assert mean_rate([Stretch(1.0, 10.0), Stretch(3.0, 30.0)]) == 25.0


def test_only_log_lines_of_a_training_are_read():
    assert read_log("{'loss': '7.1', 'items_per_second': '4123'}\n") == {"loss": 7.1, "items_per_second": 4123.0}
    assert read_log("{'eval_loss': 1.0}") is None and read_log("Rehearsal") is None


def test_the_stopwatch_of_stock_trainings_prints_rates(monkeypatch, capsys):
    import torch

    from scripts.benchmark_cases import Stopwatch

    clock = iter(range(0, 10_000, 20))  # 20 seconds between two looks at it
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))
    watch, arguments = Stopwatch(10), SimpleNamespace(device=torch.device("cpu"))
    watch.on_train_begin(arguments, None, None)
    labels = torch.tensor([[5, 6, -100], [7, -100, -100]])
    for step in range(1, 21):
        watch.count({"labels": labels, "input_ids": labels, "attention_mask": labels.ge(0).long()})
        watch.on_step_end(arguments, SimpleNamespace(global_step=step), None)
    logs = [read_log(line) for line in capsys.readouterr().out.splitlines()]
    assert logs == [{"items_per_second": 1.5, "share of places with a token": 0.5}] * 2
