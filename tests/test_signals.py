"""Signals to one process; tests/test_launchers.py sends them through launchers, to whole runs."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from pipeline.signals import STOP_SIGNALS, StopRequest, ignore_in_worker, interrupted_by_sigterm
from tests.conftest import ROOT


def handlers() -> list:
    return [signal.getsignal(number) for number in STOP_SIGNALS]


@pytest.fixture
def as_before():
    """Puts the handlers of this process back, whatever a test does to them."""
    before = dict(zip(STOP_SIGNALS, handlers(), strict=True))
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_is_received_and_does_nothing_else(number, capfd):
    before = handlers()
    with StopRequest() as request:
        received = [request.received]
        for _ in range(2):
            os.kill(os.getpid(), number)
            received.append(request.received)
    assert capfd.readouterr().err.count("stopping: the step in hand is finished and saved") == 1
    assert handlers() == before and received == [None, number, number]


@pytest.mark.usefixtures("as_before")
def test_without_a_signal_all_is_as_before(capfd):
    before = handlers()
    with StopRequest() as request:
        assert handlers() != before
    assert handlers() == before and request.received is None and not capfd.readouterr().err


@pytest.mark.usefixtures("as_before")
def test_handlers_come_back_behind_an_error():
    before = handlers()
    with pytest.raises(RuntimeError, match="of a step"), StopRequest():
        raise RuntimeError("of a step")
    assert handlers() == before


def test_outside_the_main_thread_it_is_inert():
    before, seen = handlers(), []

    def run():
        with StopRequest() as request:
            seen.append((request.received, handlers()))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(None, before)] and handlers() == before


@pytest.mark.usefixtures("as_before")
def test_a_worker_ignores_them():
    ignore_in_worker()
    for number in STOP_SIGNALS:
        os.kill(os.getpid(), number)
    assert handlers() == [signal.SIG_IGN] * 2


PARENT_DEATH_SIGNAL = """
import ctypes
from pipeline.signals import stop_with_launcher

stop_with_launcher()
number = ctypes.c_int()
ctypes.CDLL(None).prctl(2, ctypes.byref(number))  # PR_GET_PDEATHSIG
print(number.value)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
@pytest.mark.parametrize(
    "variables, number",
    [
        ({}, 0),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, signal.SIGTERM),
        ({"ACCELERATE_MIXED_PRECISION": "no", "LOCAL_RANK": "0"}, 0),  # torchrun passes signals on
    ],
    ids=["alone", "accelerate", "torchrun"],
)
def test_a_process_ends_with_a_launcher_that_passes_nothing_on(variables, number):
    environment = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK",)}
    environment.pop("ACCELERATE_MIXED_PRECISION", None)
    done = subprocess.run(
        [sys.executable, "-c", PARENT_DEATH_SIGNAL],
        cwd=ROOT,
        env=environment | variables,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str(int(number)), done.stderr


@pytest.mark.usefixtures("as_before")
def test_sigterm_can_interrupt_as_ctrl_c_does():
    before = handlers()
    with pytest.raises(KeyboardInterrupt), interrupted_by_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    assert handlers() == before
