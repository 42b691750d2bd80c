"""Whatever a config, a file of rows or a checkpoint holds: it works, or one of our own errors says why it does not.

So a traceback, a hang, and a success with a wrong result are failures here. The examples are the same each time.
"""

import contextlib
import json
import logging
import os
import shutil
from datetime import timedelta
from pathlib import Path
from unittest import mock

import datasets
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pipeline.config import Config, DataConfig
from pipeline.data.rows import separate
from pipeline.data.splits import open_split
from pipeline.errors import TeacherForcingError, one_line
from pipeline.library_settings import GenerationSettings, training_types
from pipeline.tasks.config_loading import load_config
from pipeline.tasks.trained_model import load_trained
from pipeline.training.arguments import check_settings, training_arguments
from tests.conftest import SMALL_RUN

JSON_LINES = "train.jsonl"


def examples(few: int, many: int):
    """Call a test with how many examples it is to try; the many only by `make test-slow`."""
    return pytest.mark.parametrize("count", [few, pytest.param(many, marks=pytest.mark.slow)])


def tried(count: int):
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        phases=[Phase.generate],  # the example as it was found; add Phase.shrink for a small one, which takes a while
        deadline=timedelta(seconds=20),
        suppress_health_check=[*HealthCheck],
    )


@pytest.fixture(autouse=True)
def quiet():
    """No progress bars of thousands of examples, and no change of the environment that outlives a test."""
    datasets.disable_progress_bars()
    logging.disable(logging.CRITICAL)
    with mock.patch.dict(os.environ):
        yield
    logging.disable(logging.NOTSET)
    datasets.enable_progress_bars()


@contextlib.contextmanager
def refusal_in_one_line():
    """Let an error of ours pass, whose message must have a place or a remedy: more than a word, on one line."""
    try:
        yield
    except TeacherForcingError as error:
        assert len(str(error).split()) > 2 and "\n" not in one_line(error)


# ---- what is odd

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=20)  # lone surrogates and NUL among it
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([10**9, 10**12, -(10**12), 2**63, 10**30, 10**4000, 1e300]),
    st.floats(),
    ANY_TEXT,
    st.sampled_from(["", "x" * 300, "/dev/null", "no", "1", "a/b", "a\0b", "../x", "*", "train[:1%]", "[", "true"]),
)
ODD = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3), max_leaves=5
)


def set_in(values: dict, location: tuple[str, ...], value: object) -> None:
    """Set a key, or remove it by `...`, unless what it should lie in is not a section any more."""
    for name in location[:-1]:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            return
    if value is ...:
        values.pop(location[-1], None)
    else:
        values[location[-1]] = value


# ---- configs


def known_keys() -> list[tuple[str, ...]]:
    sections = {name: getattr(field.annotation, "model_fields", {}) for name, field in Config.model_fields.items()}
    keys = [(section, key) for section, fields in sections.items() for key in fields]
    keys += [("training", key) for key in training_types()] + [
        ("generation", key) for key in GenerationSettings.model_fields
    ]
    keys += [("model", key) for key in (*SMALL_RUN["model"], "type", "from", "dropout", "embeddings", "pad_token_id")]
    keys += [("text_classification", "labels"), ("forecasting", "series"), ("language_modeling", "bptt")]
    return [*keys, *((name,) for name in (*sections, "nothing"))]


# Of several processes or of a device that is not here; `ddp_backend` would start to wait for the others.
CHANGES = st.lists(
    st.tuples(st.sampled_from([key for key in known_keys() if "ddp_backend" not in key]), ODD | st.just(...)),
    min_size=1,
    max_size=3,
)


def check_config(path: Path, overrides: list[str]) -> None:
    """A config that is taken can be written and read again, and transformers takes its settings."""
    with refusal_in_one_line():
        config = load_config(path, overrides)
        path.write_text(config.to_yaml(), encoding="utf-8")
        assert load_config(path) == config
        check_settings(config, training_arguments(config))


@examples(60, 3000)
def test_changed_configs(tmp_path, count):
    path = tmp_path / "run.yaml"

    @tried(count)
    @given(CHANGES)
    def check(changes):
        values = json.loads(json.dumps(SMALL_RUN))
        for location, value in changes:
            set_in(values, location, value)
        path.write_text(json.dumps(values), encoding="utf-8")  # JSON is YAML, but for some texts
        check_config(path, [])

    check()


@examples(60, 2000)
def test_odd_overrides(tmp_path, count):
    path = tmp_path / "run.yaml"

    @tried(count)
    @given(st.lists(st.tuples(st.sampled_from(known_keys()), ODD), max_size=2), st.lists(ANY_TEXT, max_size=1))
    def check(pairs, odd):
        path.write_text(json.dumps(SMALL_RUN), encoding="utf-8")
        words = [
            f"{'.'.join(key)}={json.dumps(value, ensure_ascii=False)}"
            for key, value in pairs
            if "ddp_backend" not in key
        ]
        check_config(path, [*words, *odd])

    check()


YAML = """# a run
task: sequence_to_sequence
data: &data
  path: reversal
  test: test
  options: {length: 4, symbols: 8, rows: 64, "held_out": 8}
tokenizer:
  kind: word
model: {d_model: 16, encoder_layers: 2}
training:
  max_steps: 4
  learning_rate: 1e-4
  eval_strategy: "no"
  report_to: [none]
evaluation:
  metrics:
  - exact_match
"""
PIECES = st.one_of(
    st.binary(max_size=4),
    st.sampled_from([b"\t", b"\n", b"- ", b": ", b"{", b"}", b"[" * 50, b"]", b'"', b"'", b"&a ", b"*a", b"<<: *data"]),
    st.sampled_from([b"!!python/object:os.system ", b"!x ", b"|\n", b">", b"%YAML 1.1\n---\n", b"---\n", b"? ", b"\0"]),
    st.sampled_from(
        [b"\xef\xbb\xbf", b"\xff\xfe", b"9" * 5000, b".nan", b"-.inf", b"2020-13-45", b"0x", b"\\U00110000"]
    ),
)


@examples(150, 3000)
def test_changed_yaml(tmp_path, count):
    path = tmp_path / "run.yaml"

    @tried(count)
    @given(st.lists(st.tuples(st.integers(0, len(YAML)), st.integers(0, 30), PIECES), min_size=1, max_size=4))
    def check(cuts):
        content = YAML.encode()
        for begin, length, piece in cuts:
            content = content[:begin] + piece + content[begin + length :]
        path.write_bytes(content)
        with refusal_in_one_line():
            config = load_config(path)
            path.write_text(config.to_yaml(), encoding="utf-8")
            assert load_config(path) == config

    check()


# ---- rows

TEXTS = st.text(max_size=30) | ANY_TEXT
ROWS = st.one_of(
    st.fixed_dictionaries({"source": TEXTS, "target": TEXTS}),
    st.dictionaries(st.sampled_from(["source", "target", "place", "problem"]), ODD, max_size=4),
    ODD,
)
LINES = st.one_of(
    ROWS.map(lambda row: json.dumps(row).encode()),
    ROWS.map(lambda row: json.dumps(row, ensure_ascii=False).encode(errors="surrogatepass")),
    st.binary(max_size=20).filter(lambda content: b"\n" not in content),
    st.sampled_from(
        [b"[" * 100_000, b'{"source":' * 5000, b'{"source": 1' + b"0" * 5000 + b"}", b"", b"\xef\xbb\xbf", b"NaN"]
    ),
)


def is_good(row: object) -> bool:
    """Tell whether a row is one of two texts that any reader must give as they are."""
    if not isinstance(row, dict) or not {"source", "target"} <= row.keys():
        return False
    texts = [row["source"], row["target"]]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        return False
    return all("\ufffd" not in text and text.isprintable() for text in texts)


@examples(40, 1500)
def test_odd_rows(tmp_path, finished_run, count):
    task = load_trained(finished_run)[1]

    @tried(count)
    @given(st.lists(ROWS.filter(is_good), max_size=2), st.lists(LINES, max_size=4), st.booleans())
    def check(good, odd, is_streamed):
        folder = tmp_path / "data"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        lines = [json.dumps(row).encode() for row in good] + odd
        (folder / JSON_LINES).write_bytes(b"".join(line + b"\n" for line in lines))
        data = DataConfig(path=str(folder), streaming=is_streamed, on_bad_row="skip")
        with refusal_in_one_line():
            rows = list(open_split(data, "train", data.columns))
            columns = {name: [row[name] for row in rows] for name in rows[0]} | {"row": list(range(len(rows)))}
            features, bad_rows = separate(task.encode(columns))
            assert len(features) + len(bad_rows) == len(rows)
            texts = [(feature["source"], feature["target"]) for feature in features[: len(good)]]
            assert texts == [(row["source"], row["target"]) for row in good]

    check()


# ---- checkpoints

FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")


@examples(30, 1500)
def test_changed_checkpoints(tmp_path, finished_run, count):
    """The values of weights have no checksum in a folder that is only loaded, so no byte of those is changed."""
    folder = Path(shutil.copytree(finished_run, tmp_path / "run"))
    (folder / "manifest.json").unlink(missing_ok=True)  # by which any change would be found
    contents = {name: (folder / name).read_bytes() for name in FILES}
    header = 8 + int.from_bytes(contents["model.safetensors"][:8], "little")
    expected = load_trained(folder)[0].state_dict()

    @tried(count)
    @given(st.sampled_from(FILES), st.floats(0, 1, exclude_max=True), st.integers(-1, 255), st.none() | ODD)
    def check(name, share, byte, value):
        content = contents[name]
        begin = int(share * (header if name == "model.safetensors" and byte >= 0 else len(content)))
        changed = content[:begin] + (b"" if byte < 0 else bytes([byte]) + content[begin + 1 :])
        if value is not None and name.endswith(".json"):
            changed = json.dumps(value).encode()
        for other in FILES:
            (folder / other).write_bytes(changed if other == name else contents[other])
        with refusal_in_one_line():
            weights = load_trained(folder)[0].state_dict()
            assert weights.keys() == expected.keys()
            assert all(torch.equal(weight, expected[name]) for name, weight in weights.items())

    check()
