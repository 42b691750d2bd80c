import hashlib

import pytest

from pipeline.config import DataConfig
from pipeline.data.readers.generated import reversal
from pipeline.data.splits import open_split
from pipeline.errors import ConfigError


def test_reversal_is_split_without_overlap():
    splits = {name: reversal(name, rows=500, held_out=100) for name in ("train", "validation", "test")}
    assert [len(rows) for rows in splits.values()] == [500, 100, 100]
    assert len({source for rows in splits.values() for source in rows["source"]}) == 700
    for row in splits["test"]:
        numbers = row["source"].split()
        assert row["target"].split() == numbers[::-1] and len(numbers) == 10
        assert all(1 <= int(number) <= 20 for number in numbers)
    assert list(reversal("test", rows=500, held_out=100)) == list(splits["test"])


def test_reversal_is_the_same_as_ever():
    """Runs that began with an earlier version go on with the same rows."""
    assert reversal("train", length=4, symbols=5, rows=9, held_out=2)["source"][:3] == ["5 5 5 5", "2 4 5 4", "3 1 3 4"]
    sources = [row["source"] for name in ("test", "validation", "train") for row in reversal(name)]
    assert hashlib.sha256("\n".join(sources).encode()).hexdigest().startswith("55ff893c649e41cc")


def test_reversal_options_are_checked():
    data = DataConfig(path="reversal", options={"lenth": 3})
    with pytest.raises(ConfigError, match=r"data.options.lenth: unknown for reversal; did you mean length\?"):
        open_split(data, "train", data.columns)
    data = DataConfig(path="reversal", options={"rows": -3})
    with pytest.raises(ConfigError, match=r"data.options.rows: -3 is not a whole number of at least 0"):
        open_split(data, "train", data.columns)
    for options in ({"length": 10**11}, {"rows": 10**11}):
        with pytest.raises(ConfigError, match="is more than 50,000,000; make fewer"):
            reversal("train", **options)
    with pytest.raises(ConfigError, match="too few different sequences"):
        reversal("train", length=2, symbols=3)
    with pytest.raises(ConfigError, match="no split 'valid'; did you mean validation"):
        reversal("valid")
