import pytest
from datasets import Dataset, DatasetDict

from pipeline.config import DataConfig
from pipeline.data.splits import fingerprint_split, open_split
from pipeline.errors import ConfigError, DataError
from tests.data.folders import EXPECTED, ROWS, open_folder, texts

STREAMING = pytest.mark.parametrize("streaming", [False, True])


@STREAMING
def test_folders_of_save_to_disk(tmp_path, streaming):
    rows = Dataset.from_list(ROWS)
    rows.with_format("numpy").save_to_disk(tmp_path / "one", num_shards=2)
    DatasetDict({"train": rows, "dev": rows.select(range(2))}).save_to_disk(tmp_path / "several")
    assert texts(open_folder(tmp_path / "one", streaming=streaming)) == EXPECTED
    assert texts(open_folder(tmp_path, "one", streaming=streaming)) == EXPECTED
    assert texts(open_folder(tmp_path / "several", streaming=streaming)) == EXPECTED
    assert texts(open_folder(tmp_path / "several", "dev", streaming=streaming)) == EXPECTED[:2]
    if not streaming:
        assert texts(open_folder(tmp_path / "one", "train[5:]")) == EXPECTED[5:]
        assert texts(open_folder(tmp_path / "several", ["dev", "train[5:]"])) == EXPECTED[:2] + EXPECTED[5:]
    data = DataConfig(path=str(tmp_path / "one"), source="en", target="fr", streaming=streaming)
    assert texts(open_split(data, "train", data.columns, lanes=3)) == EXPECTED
    if streaming:
        assert open_split(data, "train", data.columns, lanes=3).num_shards == 3
    before = fingerprint_split(data, "train", data.columns)
    rows.save_to_disk(tmp_path / "one", num_shards=2)
    assert fingerprint_split(data, "train", data.columns) == before
    rows.select(range(6)).save_to_disk(tmp_path / "one", num_shards=2)
    assert fingerprint_split(data, "train", data.columns) != before
    with pytest.raises(
        DataError, match=r"no column 'ens'; did you mean en\? The columns: en, fr. The first row: \{'en'"
    ):
        open_folder(tmp_path / "one", source="ens", streaming=streaming)
    with pytest.raises(ConfigError, match=r"one is one data set, which is train, so it has no split 'test'"):
        open_folder(tmp_path / "one", "test", streaming=streaming)
    with pytest.raises(ConfigError, match=r"several has no split 'de'; did you mean dev"):
        open_folder(tmp_path / "several", "de", streaming=streaming)
    part = next((tmp_path / "one").glob("*-00001-*.arrow"))
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(DataError, match=r"^data.path: "):
        open_folder(tmp_path / "one", streaming=streaming)
    rows.select([]).save_to_disk(tmp_path / "none")
    with pytest.raises(DataError, match=r"none is empty"):
        open_folder(tmp_path / "none", streaming=streaming)
    part.unlink()
    with pytest.raises(ConfigError, match=r"00001-of-00002.arrow is missing"):
        open_folder(tmp_path / "one", streaming=streaming)
