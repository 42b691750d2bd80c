"""Which items share a batch, how long they wait, and what becomes of those that nobody waits for."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError

import pytest

from pipeline.errors import ConfigError
from pipeline.serving.batcher import TOGETHER, Batcher, Full, Stopping


class Model:
    """Answers items by their capitals, once it is let; remembers the batches."""

    def __init__(self, is_free: bool = True):
        self.batches: list[tuple[object, list[str]]] = []
        self.free, self.busy = threading.Event(), threading.Event()
        if is_free:
            self.free.set()

    def __call__(self, group, contents):
        self.batches.append((group, list(contents)))
        self.busy.set()
        assert self.free.wait(10)
        if group == "wrong settings":
            raise ConfigError("wrong settings")
        if "wrong" in contents:
            raise ValueError("wrong")
        return [content.upper() for content in contents]


@pytest.fixture
def make():
    made: list[Batcher] = []

    def make(model: Callable, size: int = 4, latency: float = 0.0, waiting: int = 100) -> Batcher:
        made.append(Batcher(model, size, latency, waiting))
        return made[-1]

    yield make
    for batcher in made:
        batcher.stop()


def ask(batcher: Batcher, *contents: str, group: str = "same", length: int = 1):
    return batcher.submit(group, contents, [length] * len(contents))


def held(make, **settings) -> tuple[Model, Batcher]:
    """A model that is busy with an item, so that what is asked next waits."""
    model = Model(is_free=False)
    batcher = make(model, **settings)
    ask(batcher, "first")
    assert model.busy.wait(5)
    return model, batcher


def test_requests_that_wait_share_a_batch(make):
    model, batcher = held(make)
    futures = [ask(batcher, "a"), ask(batcher, "b", "c")]
    model.free.set()
    assert [future.result(5) for future in futures] == [["A"], ["B", "C"]]
    assert model.batches[1:] == [("same", ["a", "b", "c"])]


def test_a_request_larger_than_a_batch_has_its_results_in_order(make):
    model, batcher = held(make, size=2)
    future = ask(batcher, *"abcde")
    model.free.set()
    assert future.result(5) == [*"ABCDE"]
    assert [contents for _, contents in model.batches[1:]] == [["a", "b"], ["c", "d"], ["e"]]


def test_a_client_waits_for_those_that_it_was_answered_with_and_no_longer_than_the_bound(make):
    model, batcher = held(make, latency=0.2)
    futures = [ask(batcher, "a"), ask(batcher, "b")]
    model.free.set()
    assert [future.result(5) for future in futures] == [["A"], ["B"]]

    def time_one() -> float:
        begin = time.monotonic()
        assert ask(batcher, "c").result(5) == ["C"]
        return time.monotonic() - begin

    assert 0.15 <= time_one() < 1, "for the other"
    assert time_one() < 0.15, "there was no other the last time"


def test_those_that_ask_again_join_those_that_waited(make):
    model, batcher = held(make, size=2, latency=0.2)
    waited = ask(batcher, "a")
    time.sleep(0.21)
    model.free.set()
    while len(model.batches) + batcher.num_waiting != 2:
        time.sleep(0.001)
    again = ask(batcher, "b")
    assert (waited.result(5), again.result(5)) == (["A"], ["B"])
    assert model.batches[1:] == [("same", ["a", "b"])]


def test_groups_and_far_lengths_do_not_mix_and_the_oldest_is_first(make):
    model, batcher = held(make)
    futures = [
        ask(batcher, "a", group="x"),
        ask(batcher, "b", group="y"),
        ask(batcher, "c", group="x", length=200),
        ask(batcher, "d", group="x", length=2000),
    ]
    model.free.set()
    assert [future.result(5) for future in futures] == [["A"], ["B"], ["C"], ["D"]]
    assert model.batches[1:] == [("x", ["a", "c"]), ("y", ["b"]), ("x", ["d"])]


def test_long_items_fill_a_batch_so_that_the_rest_of_a_request_can_leave(make):
    model, batcher = held(make)
    futures = [ask(batcher, "a", "b", "c", length=TOGETHER // 2), ask(batcher, "d", length=2 * TOGETHER)]
    model.free.set()
    assert [future.result(5) for future in futures] == [["A", "B", "C"], ["D"]]
    assert [contents for _, contents in model.batches[1:]] == [["a", "b"], ["c"], ["d"]]


def test_cancelled_requests_leave(make):
    model, batcher = held(make)
    futures = [ask(batcher, "a"), ask(batcher, "b")]
    assert futures[0].cancel()
    model.free.set()
    assert futures[1].result(5) == ["B"]
    with pytest.raises(CancelledError):
        futures[0].result(5)
    assert model.batches[1:] == [("same", ["b"])]


def test_a_request_cancelled_in_its_batch_harms_no_other(make):
    model = Model(is_free=False)
    batcher = make(model, latency=0.05)
    futures = [ask(batcher, "a"), ask(batcher, "b")]
    assert model.busy.wait(5)
    futures[0].cancel()
    model.free.set()
    assert futures[1].result(5) == ["B"]
    assert ask(batcher, "c").result(5) == ["C"]


def test_an_error_belongs_to_its_batch_and_the_thread_goes_on(make):
    model, batcher = held(make, size=2)
    futures = [ask(batcher, "wrong", "b", "c"), ask(batcher, "d")]
    model.free.set()
    with pytest.raises(ValueError, match="wrong"):
        futures[0].result(5)
    assert futures[1].result(5) == ["D"]
    assert model.batches[1:] == [("same", ["wrong", "b"]), ("same", ["wrong"]), ("same", ["d"])], "the rest is left out"


def test_an_item_that_fails_harms_no_other(make):
    model, batcher = held(make)
    futures = [ask(batcher, content) for content in ("a", "wrong", "c", "d")]
    model.free.set()
    assert [futures[number].result(5) for number in (0, 2, 3)] == [["A"], ["C"], ["D"]]
    with pytest.raises(ValueError, match="wrong"):
        futures[1].result(5)


def test_wrong_settings_are_tried_once(make):
    model, batcher = held(make)
    futures = [ask(batcher, content, group="wrong settings") for content in "abc"]
    model.free.set()
    for future in futures:
        with pytest.raises(ConfigError):
            future.result(5)
    assert model.batches[1:] == [("wrong settings", ["a", "b", "c"])]


def test_the_queue_has_an_end_and_takes_requests_whole(make):
    model, batcher = held(make, waiting=3)
    kept = [ask(batcher, "a", "b"), ask(batcher, "c")]
    with pytest.raises(Full):
        ask(batcher, "d")
    kept[0].cancel()
    kept.append(ask(batcher, "d"))
    with pytest.raises(Full):
        ask(batcher, "e", "f")
    model.free.set()
    assert [future.result(5) for future in kept[1:]] == [["C"], ["D"]]


def test_stopping_finishes_what_was_taken(make):
    model, batcher = held(make)
    future = ask(batcher, "a", group="x")
    stopping = threading.Thread(target=batcher.stop)
    stopping.start()
    while not batcher.is_stopping:
        time.sleep(0.001)
    with pytest.raises(Stopping):
        ask(batcher, "late")
    model.free.set()
    stopping.join(5)
    assert future.result(0) == ["A"]


def test_nothing_is_answered_at_once(make):
    assert ask(make(Model())).result(0) == []
