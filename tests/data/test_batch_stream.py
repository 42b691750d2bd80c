import gc
import json
import time
from collections import Counter
from dataclasses import asdict
from itertools import islice, takewhile
from multiprocessing import active_children

import psutil
import pytest
import torch
from datasets import Dataset, IterableDataset
from torch.utils.data import get_worker_info

from pipeline.config import DataConfig, load
from pipeline.data import batch_stream as batching
from pipeline.data.batch_loader import BatchLoader
from pipeline.data.batch_stream import BatchStream, Position
from pipeline.data.rows import BadRow
from pipeline.data.splits import open_split
from pipeline.errors import DataError, RunError
from pipeline.tasks.sequence_to_sequence import SequenceToSequence
from tokenizer.training import train

LENGTHS = [(1 + 7 * index % 13, 1 + 5 * index % 11) for index in range(100)]


def shard(shards):
    for number in shards:
        yield from ({"value": index} for index in range(number * 25, number * 25 + 25))


def make_rows(kind: str):
    if kind == "dataset":
        return Dataset.from_dict({"value": list(range(100))})
    return IterableDataset.from_generator(shard, gen_kwargs={"shards": [0, 1, 2, 3]})


def encode(columns):
    return [{"value": value, "lengths": LENGTHS[value]} for value in columns["value"]]


def make_stream(kind: str, **options) -> BatchStream:
    options = {"batch_rows": 4, "window": 30, "seed": 1, **options}
    return BatchStream(make_rows(kind), options.pop("encode", encode), lambda each: each["lengths"], **options)


def collate(features):
    return {"values": torch.tensor([each["value"] for each in features])}


def take_loaded(loader: BatchLoader, count: int) -> list[list[int]]:
    return [batch["values"].tolist() for batch in islice(iter(loader), count)]


def take(stream, count: int) -> list[list[int]]:
    return [[each["value"] for each in batch] for batch, _ in islice(iter(stream), count)]


def test_packed_batches_hold_what_fits_unpadded():
    batches = take(make_stream("dataset", batch_tokens=40, packing=True), 200)
    first_pass, seen = [], set()
    for batch in batches:
        if seen & {*batch}:
            break
        first_pass.append(batch)
        seen |= {*batch}
    assert seen == {*range(100)}
    tokens = [sum(sum(LENGTHS[value]) for value in batch) for batch in first_pass]
    assert max(tokens) <= 40 and sum(tokens) / len(tokens) > 25


KINDS = pytest.mark.parametrize("kind", ["dataset", "stream"])


@KINDS
def test_a_text_is_read_in_order(kind):
    """Where a task makes its batches itself, rows come as they stand, in every pass."""
    stream = make_stream(kind, make_batches=lambda features, generator: [features[:10], features[10:]])
    batches = take(stream, 16)
    rows = [value for batch in batches for value in batch]
    assert rows[:200] == [*range(100), *range(100)]


@KINDS
def test_noise_depends_on_seed_pass_and_row_alone(kind):
    """So a resumed run has the same, and another pass another."""

    def draw(feature, generator):
        return feature | {"noise": generator.random()}

    def noises(position=None, **options):
        stream = make_stream(kind, augment=draw, encode=number, **options)
        stream.position = position or stream.position
        return list(islice(iter(stream), 60))

    def number(columns):
        return [each | {"sample_id": each["value"]} for each in encode(columns)]

    whole = noises()
    later = noises(whole[20][1], window=30)
    assert [[each["noise"] for each in batch] for batch, _ in later[:30]] == [
        [each["noise"] for each in batch] for batch, _ in whole[21:51]
    ]
    seen = {}
    for batch, _ in whole:
        for each in batch:
            seen.setdefault(each["value"], []).append(each["noise"])
    assert all(len(set(each)) == len(each) for each in seen.values())
    assert len({each[0] for each in seen.values()}) == 100
    assert noises(seed=2)[0][0][0]["noise"] not in [noise for each in seen.values() for noise in each]


@KINDS
def test_every_row_once_a_pass(kind):
    batches = [(batch, position) for batch, position in islice(iter(make_stream(kind)), 90)]
    passes = [position.pass_index for _, position in batches]
    assert sorted(set(passes)) == [0, 1, 2] + ([3] if 3 in passes else [])
    orders = []
    for number in (0, 1, 2):
        rows = [each["value"] for batch, position in batches if position.pass_index == number for each in batch]
        assert sorted(rows) == list(range(100))
        orders.append(rows)
    assert orders[0] != orders[1] != orders[2] and orders[0] != list(range(100))


@KINDS
def test_the_order_is_the_seeds(kind):
    assert take(make_stream(kind), 40) == take(make_stream(kind), 40)
    assert take(make_stream(kind), 40) != take(make_stream(kind, seed=2), 40)


@KINDS
def test_resuming_goes_on_with_the_next_batch(kind):
    """From every position in two passes, through JSON as a checkpoint stores it."""
    batches = list(islice(iter(make_stream(kind)), 60))
    expected = [[each["value"] for each in batch] for batch, _ in batches]
    for index, (_, position) in enumerate(batches[:52]):
        stream = make_stream(kind)
        loader = BatchLoader(stream, collate)
        loader.load_state_dict(json.loads(json.dumps(asdict(position))))
        assert take(stream, 3) == expected[index + 1 : index + 4]


@KINDS
def test_ranks_share_one_order(kind):
    whole = take(make_stream(kind), 60)
    ranks = [take(make_stream(kind, rank=rank, world_size=2), 30) for rank in (0, 1)]
    assert [batch for pair in zip(*ranks, strict=True) for batch in pair] == whole
    _, position = list(islice(iter(make_stream(kind, rank=0, world_size=2)), 10))[-1]
    stream = make_stream(kind)
    stream.position = position  # two ranks, ten batches each, go on as one
    assert take(stream, 5) == whole[20:25]


@pytest.mark.parametrize("ranks", [2, 3])
@KINDS
def test_no_row_twice_or_never(kind, ranks):
    """Four shards and 25 batches a pass, divided by two or three ranks that take equally many steps."""
    taken = [list(islice(iter(make_stream(kind, rank=rank, world_size=ranks)), 36)) for rank in range(ranks)]
    items = [item for turn in zip(*taken, strict=True) for item in turn]
    for number in (0, 1):
        rows = [each["value"] for batch, position in items if position.pass_index == number for each in batch]
        assert sorted(rows) == list(range(100))


@pytest.mark.parametrize("before, after", [((1, 0), (2, 2)), ((2, 2), (1, 4)), ((2, 4), (3, 0)), ((1, 4), (1, 2))])
@KINDS
def test_other_ranks_and_workers_go_on_with_the_same_order(kind, before, after):
    """(ranks, loader workers) before and after a resume at the end of a step, in the second pass."""
    whole = [[each["value"] for each in batch] for batch in take_whole(kind)]

    def train(ranks: int, workers: int, steps: int, position: Position) -> tuple[list, Position]:
        taken = []
        for rank in range(ranks):
            stream = make_stream(kind, rank=rank, world_size=ranks)
            stream.position = position
            loader = BatchLoader(stream, collate, num_workers=workers)
            taken.append(take_loaded(loader, steps))
        return [batch for turn in zip(*taken, strict=True) for batch in turn], loader.position

    first, position = train(*before, 15, Position())
    second, _ = train(*after, 20, position)
    assert first + second == whole[: len(first) + len(second)]


def take_whole(kind: str) -> list[list]:
    return [batch for batch, _ in islice(iter(make_stream(kind)), 100)]


def test_resuming_reads_one_shard_and_one_window():
    """And not what came before, as stock streams do."""
    read = []

    def shards_of_250(shards):
        for number in shards:
            for index in range(250):
                read.append(number)
                yield {"value": index % 100}

    def make():
        rows = IterableDataset.from_generator(shards_of_250, gen_kwargs={"shards": list(range(40))})
        return BatchStream(rows, encode, lambda each: each["lengths"], batch_rows=10, window=100)

    *_, (_, position) = islice(iter(make()), 800)
    before = len(read)
    assert before >= 8000
    stream = make()
    stream.position = position
    next(iter(stream))
    assert len(read) - before <= 250 + 110


@KINDS
def test_the_first_window_of_the_first_pass_is_short(kind, monkeypatch):
    """So the first step does not wait for a large window; what follows, and a resumed run, has whole windows."""
    monkeypatch.setattr(batching, "FIRST_ROWS", 5)
    sizes = []

    def note(columns):
        sizes.append(len(columns["value"]))
        return encode(columns)

    placed = list(islice(iter(make_stream(kind, encode=note, window=40, batch_tokens=60)), 50))
    assert 5 <= sizes[0] <= 8 and min(sizes[1], sizes[2], sizes[4]) >= 40 and sum(sizes[:4]) == 100
    position = placed[20][1]
    stream = make_stream(kind, encode=note, window=40, batch_tokens=60)
    stream.position = position
    assert take(stream, 29) == [[each["value"] for each in batch] for batch, _ in placed[21:]]
    for whole in ({}, {"batch_tokens": 60, "make_batches": lambda features, generator: [features]}):
        sizes.clear()
        take(make_stream(kind, encode=note, window=40, **whole), 1)
        assert sizes[0] >= 40  # of batches counted in rows, and of rows that follow one another


@pytest.mark.parametrize("workers", [1, 2, 3])
@KINDS
def test_workers_change_nothing(kind, workers):
    loader = BatchLoader(make_stream(kind), collate, num_workers=workers)
    assert take_loaded(loader, 90) == take(make_stream(kind), 90)  # over three ends of a pass
    assert not active_children()


@pytest.mark.parametrize("window", [30, 100])
@KINDS
def test_a_window_is_prepared_by_one_worker(kind, window, tmp_path):
    """And each worker prepares as many as the other, however many a pass has."""

    def note(columns):
        with (tmp_path / "rows.txt").open("a") as file:
            file.write(f"{get_worker_info().id} {len(columns['row'])}\n")
        return encode(columns)

    loader = BatchLoader(make_stream(kind, encode=note, window=window), collate, num_workers=2)
    taken = sum(map(len, take_loaded(loader, 200)))
    notes = [line.split() for line in (tmp_path / "rows.txt").read_text().splitlines()]
    windows = Counter(worker for worker, _ in notes)
    assert {*windows} == {"0", "1"} and abs(windows["0"] - windows["1"]) <= 2
    # the window in use, two in work, two ready
    assert taken <= sum(int(rows) for _, rows in notes) <= taken + 5 * window * 1.1


def test_token_budget_and_padding():
    stream = make_stream("dataset", batch_tokens=60, window=100)
    batches = list(islice(iter(stream), stream.count_batches()))
    real = padded = 0
    for batch, _ in batches:
        sides = [max(side) for side in zip(*(each["lengths"] for each in batch), strict=True)]
        assert len(batch) == 1 or len(batch) * sum(sides) <= 60
        real += sum(sum(each["lengths"]) for each in batch)
        padded += len(batch) * sum(sides)
    assert sum(len(batch) for batch, _ in batches) == 100
    assert real / padded > 0.75
    mixed = list(islice(iter(make_stream("dataset", window=4)), 25))
    shuffled = sum(len(b) * sum(max(s) for s in zip(*(e["lengths"] for e in b), strict=True)) for b, _ in mixed)
    assert padded < shuffled  # grouping by length is what keeps padding low


def test_a_row_over_the_budget_is_a_batch_of_its_own():
    stream = make_stream("dataset", batch_tokens=10)
    sizes = Counter(len(batch) for batch, _ in islice(iter(stream), stream.count_batches()))
    assert sizes[1] > 0


@pytest.mark.parametrize("workers", [0, 2])
def test_no_rows_are_an_error(workers):
    rows = Dataset.from_dict({"value": []})
    stream = BatchStream(rows, encode, lambda each: each["lengths"], batch_rows=4)
    with pytest.raises(DataError, match="there are no training rows"):
        next(iter(BatchLoader(stream, collate, num_workers=workers)))
    with pytest.raises(DataError, match="none of the 0 training rows can be used"):
        stream.count_batches()


def odd(columns):
    return [
        feature if feature["value"] % 2 else BadRow(f"row {row}", "even")
        for feature, row in zip(encode(columns), columns["row"], strict=True)
    ]


@KINDS
def test_bad_rows_are_named_or_skipped_and_counted(kind):
    """A pass has 50; the count goes on over passes and through a position, the bound is that of one pass."""
    stream = make_stream(kind, encode=odd, max_bad_rows=50)
    items = list(islice(iter(stream), 60))
    first = [item for item in items if item[1].pass_index == 0]
    assert sorted(each["value"] for batch, _ in first for each in batch) == list(range(1, 100, 2))
    for number in (0, 1, 2):
        last = [position for _, position in items if position.pass_index == number][-1]
        assert last.skipped_before + last.skipped_in_window == 50 * (number + 1)
        assert last.skipped_in_pass + last.skipped_in_window == 50
    stream = make_stream(kind, encode=odd, max_bad_rows=None)
    stream.position = items[20][1]
    assert [item[1] for item in islice(iter(stream), 30)] == [position for _, position in items[21:51]]
    with pytest.raises(DataError, match=r"bad rows in one pass, where data.max_bad_rows=49; one: row \d+: even"):
        take(make_stream(kind, encode=odd, max_bad_rows=49), 60)
    with pytest.raises(DataError, match=r"row \d+: even; fix or remove the row, or set data.on_bad_row=skip"):
        take(make_stream(kind, encode=odd), 1)


@KINDS
def test_skipped_rows_are_named_in_the_log(kind, caplog):
    take(make_stream(kind, encode=odd, max_bad_rows=None, window=100), 1)
    named = [record.message for record in caplog.records]
    assert len(named) == 4 and named[0].startswith("skipped: row ") and named[-1].startswith("skipped: 47 more rows")


@KINDS
@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_left_to_train_on(kind, workers):
    """The message is the same from a worker: it travels as it is."""
    stream = make_stream(
        kind, encode=lambda columns: [BadRow(f"row {row}", "too long") for row in columns["row"]], max_bad_rows=None
    )
    with pytest.raises(DataError, match=r"^none of the 100 training rows can be used; the last: row \d+: too long$"):
        next(iter(BatchLoader(stream, collate, num_workers=workers)))


def test_a_hung_worker_is_named():
    def hang(columns):
        if get_worker_info().id == 1:
            time.sleep(60)
        return encode(columns)

    loader = BatchLoader(make_stream("dataset", encode=hang), collate, num_workers=2, timeout=2)
    with pytest.raises(RunError, match=r"loader worker 1 of 2 gave nothing in 2 seconds, after row 30 of pass 0"):
        list(islice(iter(loader), 20))
    assert not active_children()


def test_epoch_is_the_share_of_the_pass():
    positions = [position for _, position in islice(iter(make_stream("dataset")), 60)]
    epochs = [position.epoch for position in positions]
    assert epochs == sorted(epochs) and 0 < epochs[0] < 0.1
    first_pass = [position.epoch for position in positions if position.pass_index == 0]
    assert first_pass[-1] == pytest.approx(1)


def test_captions_are_padded_little(shared_data):
    """At least 96 % of the places in the batches of the translation config hold a token, the first pass included."""
    config = load("configs/translation_multi30k_en_fr.yaml", [f"data.path={shared_data}/multi30k", "data.options={}"])
    rows = open_split(config.data, "train", config.data.columns)
    texts = (row[name] for row in rows for name in ("source", "target"))
    task = SequenceToSequence(train(texts, config.tokenizer.kind, config.tokenizer.vocab_size))
    batch_tokens, window = config.data.batch_tokens, config.data.shuffle_window
    stream = BatchStream(rows, task.encode, task.lengths, batch_rows=1, batch_tokens=batch_tokens, window=window)
    real = places = 0
    for features, _ in takewhile(lambda item: item[1].pass_index == 0, stream):
        batch = task.collate(features)
        size = batch["input_ids"].numel() + batch["labels"].numel()
        assert size <= batch_tokens
        real += int(batch["attention_mask"].sum() + batch["labels"].ne(-100).sum())
        places += size
    assert real / places >= 0.96


@pytest.mark.slow
def test_memory_stays_flat(tmp_path):
    """Two hundred thousand streamed rows: resident memory within 5 % between 10 % and 100 % of the pass."""
    for number in range(10):
        lines = ({"source": f"{index} a b c", "target": "d e f"} for index in range(20_000))
        (tmp_path / f"train-{number}.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    data = DataConfig(path=str(tmp_path), streaming=True, validation=None)
    task = SequenceToSequence(train(["a b c d e f"], "bpe", 300))
    stream = BatchStream(open_split(data, "train", data.columns), task.encode, task.lengths, batch_rows=100)
    sizes = []
    for _, position in takewhile(lambda item: item[1].pass_index == 0, stream):
        if position.first_row >= 20_000 * (len(sizes) + 1):
            gc.collect()
            sizes.append(psutil.Process().memory_info().rss)
    assert len(sizes) == 10
    assert max(sizes) <= 1.05 * sizes[0]
