"""Data sets of the Hub as they are read, with and without faults on the way."""

import json
import re
import threading

import pytest
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import httpx

from pipeline.config import DataConfig
from pipeline.data.batch_stream import BatchStream
from pipeline.data.hub_reading import (
    download_model,
    explain_refusal,
    is_on_hub,
    is_transient,
    iterate_rows,
    resolve_commit,
    retry_seconds,
)
from pipeline.data.lanes import Lanes
from pipeline.data.splits import open_split
from pipeline.errors import ConfigError, DataError, RunError
from pipeline.run import train
from tests.conftest import HUB
from tests.hub_data import FORMATS, ROWS, as_jsonl, as_parquet

pytestmark = pytest.mark.usefixtures("little_sleep")


def read_all(name: str, **options) -> list[dict]:
    data = DataConfig(path=name, **{"streaming": True, "validation": None, **options})
    rows = iterate_rows(open_split(data, "train", data.columns), retry_seconds(data))
    return [{column: row[column] for column in ("source", "target")} for row in rows]


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("kind", FORMATS)
def test_data_sets_are_read(data_set, kind, streaming):
    name, _ = data_set(kind, private=True)
    assert sorted(map(str, read_all(name, streaming=streaming))) == sorted(map(str, ROWS))


def batches(name: str, count: int, patience: float = 60, position=None) -> list[tuple[list[str], object]]:
    data = DataConfig(path=name, streaming=True, validation=None)

    def encode(columns):
        return [{"text": text} for text in columns["source"]]

    rows = open_split(data, "train", data.columns)
    stream = BatchStream(rows, encode, lambda each: (1,), batch_rows=10, window=40, patience=patience)
    if position is not None:
        stream.position = position
    items = iter(stream)
    return [
        ([feature["text"] for feature in batch], position) for batch, position in (next(items) for _ in range(count))
    ]


FAULTS = {
    "500 for long": {"kind": "status", "status": 500, "times": 40},
    "502": {"kind": "status", "status": 502, "times": 3},
    "503 for long": {"kind": "status", "status": 503, "times": 40},
    "504": {"kind": "status", "status": 504, "times": 30},
    "429": {"kind": "status", "status": 429, "retry_after": 1, "times": 30},
    "reset": {"kind": "reset", "times": 30},
    "cut off": {"kind": "cut", "times": 5},
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_stream_rides_out_faults(data_set, caplog, fault, kind):
    """In its middle: the rows are those of a quiet stream, in the same order, over the end of a pass."""
    name, _ = data_set(kind)
    expected = batches(name, 45)
    HUB.break_next({"path": r"/resolve/.*train-[12]", "skip": 1, **fault})
    assert batches(name, 45) == expected


@pytest.mark.parametrize(("files", "lanes"), [(64, 16), (16, 3)])
def test_lanes_read_a_source_once(files, lanes):
    """All of them together, where it has files enough; else each lane reads all of it."""
    lines = [json.dumps({"source": f"{row} {'a b ' * 50}", "target": "c"}) + "\n" for row in range(4_000)]
    shards = {f"train-{number:02}.jsonl": "".join(lines[number::files]).encode() for number in range(files)}
    name = f"me/lanes-{files}-{lanes}"
    HUB.add(name, shards)
    data = DataConfig(path=name, streaming=True, validation=None)
    rows = open_split(data, "train", data.columns, lanes)

    def make(lane):
        encode = make_encode(seen)
        return BatchStream(rows, encode, lambda each: (1,), batch_rows=10, window=40, lane=lane, lanes=lanes)

    seen: list[str] = []
    HUB.forget()
    for rank in range(lanes):
        Lanes(make, lanes, rank, lanes).count_batches()
    assert len(seen) == 4_000 == len({*seen})
    served = sum(size for path, size in HUB.served().items() if "/resolve/" in path)
    passes = served / sum(map(len, shards.values()))
    assert passes <= 1.1 if files % lanes == 0 else passes == pytest.approx(lanes, rel=0.1)


def make_encode(seen: list[str]):
    def encode(columns):
        seen.extend(columns["source"])
        return [{"text": text} for text in columns["source"]]

    return encode


def test_patience_ends_with_the_reason(data_set):
    name, _ = data_set()
    data = DataConfig(path=name, streaming=True, validation=None)
    rows = open_split(data, "train", data.columns)
    HUB.break_next({"path": "/resolve/", "kind": "status", "status": 503, "times": 10**6})
    stream = BatchStream(rows, lambda columns: [], lambda each: (1,), batch_rows=10, patience=0.2)
    with pytest.raises(DataError, match=r"the rows behind row 0 cannot be read: .*503"):
        next(iter(stream))


def test_waiting_is_logged(data_set, caplog):
    name, _ = data_set()
    data = DataConfig(path=name, streaming=True, validation=None)
    rows = open_split(data, "train", data.columns)
    HUB.break_next({"path": "/resolve/", "kind": "status", "status": 503, "times": 60})
    assert len(list(iterate_rows(rows, 60))) == 300
    assert re.search(r"reading the stream: .*503.*; trying again in \d+ s, for \d+ s more", caplog.text)


def test_the_hub_goes_and_comes_back(data_set, monkeypatch):
    """Killed in the middle of a stream, and started again: nothing is lost or doubled."""
    name, _ = data_set()
    expected = batches(name, 45)
    data = DataConfig(path=name, streaming=True, validation=None)
    stream = BatchStream(
        open_split(data, "train", data.columns),
        lambda columns: [{"text": text} for text in columns["source"]],
        lambda each: (1,),
        batch_rows=10,
        window=40,
        patience=120,
    )
    items = iter(stream)
    got = [next(items) for _ in range(3)]
    HUB.stop()
    restart = threading.Timer(1.0, HUB.start)
    restart.start()
    got += [next(items) for _ in range(42)]
    restart.join()
    assert [([feature["text"] for feature in batch], position) for batch, position in got] == expected


@pytest.mark.parametrize(
    "path, message",
    [
        ("me/no-such-set", "there is no me/no-such-set on the Hub, or it is private: check the name, or log in"),
        ("closed/set", "there is no closed/set on the Hub, or it is private"),
        ("gated/set", "'gated/set' is a gated dataset on the Hub. Visit the dataset page"),
    ],
)
def test_what_waiting_cannot_fix_is_said_at_once(hub, make_config, path, message):
    HUB.add("closed/set", {"train.jsonl": as_jsonl(ROWS)}, private=True)
    HUB.add("gated/set", {"train.jsonl": as_jsonl(ROWS)})
    with pytest.raises(ConfigError, match=re.escape(message)):
        train(
            make_config(
                data={"path": path, "streaming": True, "validation": None, "test": None, "options": {}},
                training={"eval_strategy": "no"},
            )
        )


def test_a_revision_that_is_not_there(data_set):
    name, _ = data_set()
    with pytest.raises(ConfigError, match="has no such revision"):
        resolve_commit(name, "v7", 0)


def test_a_damaged_download_is_fetched_again(data_set, caplog):
    """Where the Hub gives the SHA-256: one fault is fixed by a second download, a lasting one is refused."""
    name, _ = data_set("parquet")
    HUB.break_next({"path": r"/resolve/.*train-1", "method": "GET", "kind": "flip"})
    assert len(read_all(name, streaming=False)) == 300
    assert "train-1.parquet arrived damaged" in caplog.text
    other = f"{name}-2"
    HUB.add(other, {"train.parquet": as_parquet(ROWS)})
    HUB.break_next({"path": "/resolve/", "method": "GET", "kind": "flip", "times": 10})
    with pytest.raises(DataError, match=r"train.parquet arrives damaged: its SHA-256 is not"):
        read_all(other, streaming=False)
    HUB.break_next()
    assert len(read_all(other, streaming=False)) == 300  # nothing damaged stays in the cache


@pytest.mark.parametrize("fault", [{"kind": "status", "status": 503, "times": 9}, {"kind": "reset", "times": 9}])
def test_a_download_rides_out_faults(data_set, fault):
    name, _ = data_set("parquet")
    HUB.break_next({"path": r"/resolve/.*train-1", **fault})
    assert len(read_all(name, streaming=False)) == 300


def test_what_is_on_the_hub(tmp_path, monkeypatch):
    """owner/name, unless it lies on this machine, where waiting cannot help."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me" / "here").mkdir(parents=True)
    names = ("me/there", "me/here", "reversal", "./me", "/me", "~/me", "a/b/c")
    assert [is_on_hub(name) for name in names] == [True, *[False] * 6]
    assert retry_seconds(DataConfig(path="me/there", hub_patience=7)) == 7
    assert retry_seconds(DataConfig(path="me/here", hub_patience=7)) == 0


def test_a_client_that_must_stay_offline_is_not_waited_for(monkeypatch):
    """`datasets` says why only in the text of its error, and cuts off the cause."""
    offline = OfflineModeIsEnabled("Cannot reach the Hub: offline mode is enabled.")
    for error in (offline, ConnectionError("Couldn't reach 'me/none' on the Hub (OfflineModeIsEnabled)")):
        assert not is_transient(error)
        assert explain_refusal(error, "me/none") == (
            "me/none is not in the local cache, and HF_HUB_OFFLINE forbids to fetch it; unset that once"
        )

    def refuse(*args, **kwargs):
        raise offline

    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", refuse)
    with pytest.raises(ConfigError, match="me/none is not in the local cache"):
        resolve_commit("me/none", None, 600)
    with pytest.raises(ConfigError, match="me/none is not in the local cache"):
        download_model("me/none", 600)


def test_a_hub_that_is_not_reached_is_not_the_fault_of_the_config(monkeypatch):
    def fail(*args, **kwargs):
        raise httpx.ConnectError("no route")

    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", fail)
    with pytest.raises(RunError, match="me/none: the Hub is not reached: ConnectError: no route; run the same"):
        resolve_commit("me/none", None, 0)
