"""YAML and overrides as plain values: what cannot be one is refused at once, in one line."""

import math
import time

import pytest

from pipeline import source
from pipeline.errors import ConfigError
from pipeline.source import parse_overrides, plain, read_source

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.fixture
def read(tmp_path):
    def write_and_read(content: str | bytes, *overrides: str):
        path = tmp_path / "run.yaml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_source(path, overrides)

    return write_and_read


@pytest.mark.parametrize(
    "content, message",
    [
        (b"data: {path: x}\0\n", "not valid YAML: unacceptable character"),
        (b"data: {path: \xff}\n", ":1: not valid YAML: invalid UTF-8"),
        (b"\xff\xfed\0a\0", "invalid UTF-8"),
        ("data:\n  path: !!python/object:os.system x\n", ":2: not plain YAML: remove the tag "),
        ("data: !x {}\n", "remove the tag !x"),
        ("a: " + "[" * 100_000, "nested more than 20 levels deep"),
        ("- " * 100_000, "nested more than 20 levels deep"),
        ("a: " + "9" * 5000, "not valid YAML: Exceeds the limit"),
        (f"a: {2**63}", "a is a number of more than 63 bits"),
        ("a: .nan", "a is nan; give a finite number"),
        ("a: {b: [1, -.inf]}", "a.b.1 is -inf"),
        ("a: 1e999", "a is inf"),
        ("a: 2020-01-01", "a is a date; write text in quotes"),
        ("a: 2020-13-45", "not valid YAML: month must be in 1..12"),
        ("1: x", "has the key 1; write it in quotes"),
        ("? [a]\n: x", "has the key"),
        ('a: "\\0"', "a holds a NUL character"),
        ('a: "\\ud800"', "a is invalid UTF-8"),
        ('a: "\\U00110000"', "not valid YAML"),
        ("a: 1\nb: 2\na: 3\n", ":3: not valid YAML: found duplicate key"),
        (BOMB, "more than 100000 values"),
        ("a: &a {b: *a}", "a.b.b... is nested more than 20 levels deep"),
        ("a: *b", "found undefined alias"),
        ("a: 1\n" * 100_000, "more than 200,000 bytes"),
        ("hello", "must hold sections such as `data:`, not a str"),
    ],
    ids=range(25),
)
def test_what_is_not_plain(read, content, message):
    begin = time.process_time()
    with pytest.raises(ConfigError) as caught:
        read(content)
    assert "run.yaml" in str(caught.value) and message in str(caught.value)
    assert time.process_time() - begin < 2


def test_what_yaml_may_do(read):
    """Aliases are copies, so that a change of one leaves the other as it is; a byte order mark is not text."""
    values = read("\ufeffbase: &base {rate: 1e-4, on: yes}\nmore: {<<: *base, on: true}\nagain: *base\nempty:\n").values
    assert values == {
        "base": {"rate": 1e-4, "on": "yes"},
        "more": {"rate": 1e-4, "on": True},
        "again": {"rate": 1e-4, "on": "yes"},
        "empty": None,
    }
    assert read("base: &base {a: 1}\nagain: *base\n", "base.a=2").values == {"base": {"a": 2}, "again": {"a": 1}}
    assert read("").values == {}


def test_places(read, tmp_path):
    values = read("data: &data\n  path: x\nmore:\n  <<: *data\n", "model.type=y", "training={a: {b: 1}}")
    path = tmp_path / "run.yaml"
    assert values.place(("data", "path")) == f"{path}:2: "
    assert values.place(("data", "nothing")) == f"{path}:1: "
    assert values.place(("more", "path")) == f"{path}:3: "  # by a merge, so without a line
    assert values.place(("nothing",)) == f"{path}: "
    assert values.place(("model", "type")) == "override 'model.type=y': "
    assert values.place(("training", "a", "b")) == "override 'training={a: {b: 1}}': "


def test_what_is_not_a_file(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, message in (
        (tmp_path / "none.yaml", "none.yaml: no such config file"),
        (tmp_path / "loop", "loop: Too many levels of symbolic links; name a YAML file"),
        (tmp_path, ": Is a directory; name a YAML file"),
        (tmp_path / ("x" * 300), ": File name too long; name a YAML file"),
        (tmp_path / "a\0b", "no file's name holds a NUL character"),
        ("/dev/zero", "/dev/zero: more than 200,000 bytes"),
    ):
        with pytest.raises(ConfigError) as caught:
            read_source(path)
        assert message in str(caught.value)


@pytest.mark.parametrize(
    "override, message",
    [
        ("data.path=", "there is no value; write data.path=null to unset the key"),
        ("data.path= ", "there is no value"),
        ("data", "write section.key=value"),
        ("=x", "write section.key=value"),
        ("data..path=x", "write section.key=value"),
        ("data.path=\udcff", "is invalid UTF-8"),
        ("data.\udcff=x", "is invalid UTF-8"),
        ("data.path=\0", "holds a NUL character"),
        ('data.path="\\0"', "data.path holds a NUL character"),
        ("data.path=" + "[" * 100_000, "nested more than 20 levels deep"),
        (".".join("a" * 1000) + "=1", "more than 20 keys"),
        ("data.x=.inf", "data.x is inf"),
        ("data.x=!!set {a}", "remove the tag"),
        ("data.x=[1", "the value is not valid YAML|not valid YAML"),
    ],
    ids=range(14),
)
def test_overrides_that_are_refused(override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse_overrides([override])
    assert str(caught.value).startswith("override ") and "\n" not in str(caught.value)


def test_parse_overrides():
    assert parse_overrides(["do_sample=true", "top_k=10", "a.b=0.6", "a.c=[x, 'y']", "d=null"]) == {
        "do_sample": True,
        "top_k": 10,
        "a": {"b": 0.6, "c": ["x", "y"]},
        "d": None,
    }


def test_plain_values_of_python():
    """They are copied; what YAML cannot hold is refused."""
    values = {"a": [1, (2.5, None)], "b": {"c": True}}
    copied = plain(values, "config")
    assert copied == {"a": [1, [2.5, None]], "b": {"c": True}} and copied["b"] is not values["b"]
    for odd in ({1: 2}, {"a": {1}}, {"a": math.nan}, {"a": object()}, {"a": b"x"}, {"a\0": 1}, 10**5000):
        with pytest.raises(ConfigError, match=r"^config: "):
            plain(odd, "config")
    endless: list = []
    endless.append(endless)
    with pytest.raises(ConfigError, match=f"more than {source.MAX_DEPTH} levels"):
        plain(endless, "config")
