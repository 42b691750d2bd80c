import gc
import json
from collections import Counter
from dataclasses import asdict, replace
from itertools import islice, takewhile

import psutil
import pytest
from datasets import Dataset, IterableDataset

from pipeline.config import DataConfig
from pipeline.data import batch_stream
from pipeline.data.batch_loader import BatchLoader
from pipeline.data.batch_stream import BatchStream, Position
from pipeline.data.splits import open_split
from pipeline.errors import DataError
from pipeline.tasks.config_loading import load_config
from pipeline.tasks.sequence_to_sequence import SequenceToSequence
from tests.data.streams import KINDS, LENGTHS, collate, encode, make_lanes, make_stream, odd, take, take_loaded
from tokenizer.training import train


def test_packed_batches_hold_what_fits_unpadded():
    batches = take(make_stream("dataset", batch_tokens=40, packing=True), 200)
    first_pass: list[list[int]] = []
    seen: set[int] = set()
    for batch in batches:
        if seen & {*batch}:
            break
        first_pass.append(batch)
        seen |= {*batch}
    assert seen == {*range(100)}
    tokens = [sum(sum(LENGTHS[value]) for value in batch) for batch in first_pass]
    assert max(tokens) <= 40 and sum(tokens) / len(tokens) > 25


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
        return [feature | {"sample_id": feature["value"]} for feature in encode(columns)]

    whole = noises()
    later = noises(whole[20][1], window=30)
    assert [[feature["noise"] for feature in batch] for batch, _ in later[:30]] == [
        [feature["noise"] for feature in batch] for batch, _ in whole[21:51]
    ]
    seen: dict[int, list[float]] = {}
    for batch, _ in whole:
        for feature in batch:
            seen.setdefault(feature["value"], []).append(feature["noise"])
    assert all(len(set(noise_of_row)) == len(noise_of_row) for noise_of_row in seen.values())
    assert len({noise_of_row[0] for noise_of_row in seen.values()}) == 100
    assert noises(seed=2)[0][0][0]["noise"] not in [noise for noise_of_row in seen.values() for noise in noise_of_row]


@KINDS
def test_noise_on_texts_is_the_same_however_rows_are_read(kind):
    """In other windows, behind a resume, and in workers; rows that noise does not change are encoded once."""
    encoded = []

    def number(columns):
        encoded.extend(columns["row"])
        rows = zip(columns["row"], columns["value"], strict=True)
        return [{"sample_id": row, "value": value, "lengths": (3, 3)} for row, value in rows]

    def noise(row, generator):
        return {"value": row["value"] + 1000 * generator.integers(1, 10)} if generator.random() < 0.3 else {}

    def read(position=None, **options):
        stream = make_stream(kind, noise={"": noise}, encode=number, **options)
        stream.position = position or stream.position
        return list(islice(iter(stream), 60))

    whole = read(window=25)
    assert 225 * 1.2 < len(encoded) < 250 * 1.4  # 60 batches are nine or ten windows
    values = [feature["value"] for batch, _ in whole for feature in batch]
    assert sorted(value % 1000 for value in values[:100]) == [*range(100)]
    assert 0.2 < sum(value >= 1000 for value in values) / len(values) < 0.4
    first, second = ({value % 1000: value for value in values[start : start + 100]} for start in (0, 100))
    assert first != second
    other = [feature["value"] for batch, _ in read(window=100) for feature in batch]
    assert {value % 1000: value for value in other[:100]} == first
    assert {value % 1000: value for value in other[100:200]} == second
    resumed = read(whole[20][1], window=25)
    assert [batch for batch, _ in resumed[:30]] == [batch for batch, _ in whole[21:51]]
    loader = BatchLoader(make_lanes(kind, noise={"": noise}, encode=number, window=25), collate, num_workers=2)
    assert take_loaded(loader, 30) == [[feature["value"] for feature in batch] for batch, _ in whole[:30]]


@KINDS
def test_every_row_once_a_pass(kind):
    batches = [(batch, position) for batch, position in islice(iter(make_stream(kind)), 90)]
    passes = [position.pass_index for _, position in batches]
    assert sorted(set(passes)) == [0, 1, 2] + ([3] if 3 in passes else [])
    orders = []
    for number in (0, 1, 2):
        rows = [feature["value"] for batch, position in batches if position.pass_index == number for feature in batch]
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
    expected = [[feature["value"] for feature in batch] for batch, _ in batches]
    for index, (_, position) in enumerate(batches[:52]):
        stream = make_stream(kind)
        stream.position = Position.from_dict(json.loads(json.dumps(asdict(position))))
        assert take(stream, 3) == expected[index + 1 : index + 4]


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
        return BatchStream(rows, encode, lambda feature: feature["lengths"], batch_rows=10, window=100)

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
    monkeypatch.setattr(batch_stream, "FIRST_ROWS", 5)
    sizes = []

    def note(columns):
        sizes.append(len(columns["value"]))
        return encode(columns)

    placed = list(islice(iter(make_stream(kind, encode=note, window=40, batch_tokens=60)), 50))
    assert 5 <= sizes[0] <= 8 and min(sizes[1], sizes[2], sizes[4]) >= 40 and sum(sizes[:4]) == 100
    position = placed[20][1]
    stream = make_stream(kind, encode=note, window=40, batch_tokens=60)
    stream.position = position
    assert take(stream, 29) == [[feature["value"] for feature in batch] for batch, _ in placed[21:]]
    for whole in ({}, {"batch_tokens": 60, "make_batches": lambda features, generator: [features]}):
        sizes.clear()
        take(make_stream(kind, encode=note, window=40, **whole), 1)
        assert sizes[0] >= 40  # of batches counted in rows, and of rows that follow one another


def test_token_budget_and_padding():
    stream = make_stream("dataset", batch_tokens=60, window=100)
    batches = list(islice(iter(stream), stream.count_batches()))
    real = padded = 0
    for batch, _ in batches:
        sides = [max(side) for side in zip(*(feature["lengths"] for feature in batch), strict=True)]
        assert len(batch) == 1 or len(batch) * sum(sides) <= 60
        real += sum(sum(feature["lengths"]) for feature in batch)
        padded += len(batch) * sum(sides)
    assert sum(len(batch) for batch, _ in batches) == 100
    assert real / padded > 0.75
    mixed = list(islice(iter(make_stream("dataset", window=4)), 25))
    shuffled = sum(len(b) * sum(max(s) for s in zip(*(e["lengths"] for e in b), strict=True)) for b, _ in mixed)
    assert padded < shuffled  # grouping by length is what keeps padding low


def test_64_rows_and_more_are_a_multiple_of_16():
    stream = make_stream("dataset", batch_tokens=100)
    assert [stream.room(sides) for sides in ((0, 1), (1, 1), (4, 3), (60, 60))] == [96, 50, 14, 1]
    assert make_stream("dataset", batch_rows=50).room((60, 60)) == 50


def test_a_row_over_the_budget_is_a_batch_of_its_own():
    stream = make_stream("dataset", batch_tokens=10)
    sizes = Counter(len(batch) for batch, _ in islice(iter(stream), stream.count_batches()))
    assert sizes[1] > 0


@KINDS
def test_bad_rows_are_named_or_skipped_and_counted(kind):
    """A pass has 50; the count goes on over passes and through a position, the bound is that of one pass."""
    stream = make_stream(kind, encode=odd, max_bad_rows=50)
    items = list(islice(iter(stream), 60))
    first = [item for item in items if item[1].pass_index == 0]
    assert sorted(feature["value"] for batch, _ in first for feature in batch) == list(range(1, 100, 2))
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


def test_epoch_is_the_share_of_the_pass():
    positions = [position for _, position in islice(iter(make_stream("dataset")), 60)]
    epochs = [position.epoch for position in positions]
    assert epochs == sorted(epochs) and 0 < epochs[0] < 0.1
    first_pass = [position.epoch for position in positions if position.pass_index == 0]
    assert first_pass[-1] == pytest.approx(1)


def test_captions_are_padded_little(shared_data):
    """At least 96 % of the places in the batches of a translation config hold a token, the first pass included."""
    config = load_config(
        "configs/benchmark_multi30k_en_fr.yaml", [f"data.path={shared_data}/multi30k", "data.options={}"]
    )
    rows = open_split(config.data, "train", config.data.columns)
    texts = (row[name] for row in rows for name in ("source", "target"))
    task = SequenceToSequence(train(texts, config.tokenizer.kind, config.tokenizer.vocab_size))
    batch_tokens, window = config.data.batch_tokens, config.data.shuffle_window
    assert batch_tokens is not None
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
    sizes: list[int] = []
    for _, position in takewhile(lambda item: item[1].pass_index == 0, stream):
        if position.first_row >= 20_000 * (len(sizes) + 1):
            gc.collect()
            sizes.append(psutil.Process().memory_info().rss)
    assert len(sizes) == 10
    assert max(sizes) <= 1.05 * sizes[0]


def test_the_picture_of_the_module():
    """Ten rows in windows of six, batches of two: the position behind batch 3, and what is read there."""
    read = []

    def note(columns):
        read.append(len(columns["row"]))
        return [{"value": value, "lengths": (1,)} for value in columns["value"]]

    rows = Dataset.from_dict({"value": list(range(10))})
    stream = BatchStream(rows, note, lambda feature: (1,), batch_rows=2, window=6)
    *_, (_, position) = islice(iter(stream), 4)
    behind = replace(position, epoch=0.0)
    assert behind == Position(pass_index=0, window=1, first_row=6, first_batch=3, next_batch=4)
    stream.position = behind
    read.clear()
    next(iter(stream))
    assert read == [4]


@KINDS
def test_positions_of_version_0_1_0_are_read(kind):
    """They called `pass_index` number, and `stream_state` rows."""
    batches = list(islice(iter(make_stream(kind)), 40))
    state = json.loads(json.dumps(asdict(batches[30][1])))
    assert state["pass_index"] == 1
    state["number"], state["rows"] = state.pop("pass_index"), state.pop("stream_state")
    lanes = make_lanes(kind)
    lanes.load_state_dict({"next_batch": state["next_batch"], "lanes": [state]})
    loader = BatchLoader(lanes, collate)
    assert take_loaded(loader, 5) == [[feature["value"] for feature in batch] for batch, _ in batches[31:36]]
