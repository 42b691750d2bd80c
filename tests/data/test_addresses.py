import io
import zipfile

import pytest

from pipeline.data.addresses import Place, find_place, find_repository
from pipeline.data.splits import fingerprint_split
from pipeline.errors import ConfigError, DataError
from pipeline.run_folder import find_revisions
from tests.data.remote import FILES, STREAMING, config, read
from tests.hub_data import ROWS, as_jsonl

pytestmark = pytest.mark.usefixtures("little_sleep")


@STREAMING
def test_files_of_the_hub(hub, hub_name, streaming):
    """At the commit of the beginning, whatever is pushed then."""
    files = {f"data/{name}": content for name, content in FILES.items()}
    commit = hub.add(hub_name, files, private=True)
    address = f"hf://datasets/{hub_name}/data"
    for keys in (
        {"path": f"{address}/a.jsonl"},
        {"train": f"{address}/a.csv.gz"},
        {"path": address, "train": "a.jsonl"},
        {"path": f"{address}/a.parquet", "train": "a.json"},
        {"train": f"{hub.address}/datasets/{hub_name}/resolve/main/data/a.jsonl"},
    ):
        assert read(config(**keys, streaming=streaming)) == ROWS, keys
    data = config(train=[f"{address}/a.jsonl", f"{address}/a.json"], streaming=streaming)
    revisions = find_revisions(data, None, {})
    assert revisions == {"train": commit}
    hub.add(hub_name, {"data/a.jsonl": as_jsonl(ROWS[:5])}, private=True)
    pinned = data.pinned(revisions)
    assert pinned.train[0] == f"hf://datasets/{hub_name}@{commit}/data/a.jsonl"
    assert read(pinned) == ROWS + ROWS and len(read(data)) == 305
    fingerprint = fingerprint_split(pinned, pinned.train, data.columns)
    assert fingerprint != fingerprint_split(data.pinned(find_revisions(data, None, {})), data.train, data.columns)
    with pytest.raises((ConfigError, DataError), match=r"none.jsonl"):
        read(config(train=f"{address}/none.jsonl", streaming=streaming))


@STREAMING
def test_parallel_texts_of_the_hub(hub, hub_name, streaming):
    """They are read from this machine, so they are not streamed."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.en-fr.en", "a\nb\n")
        archive.writestr("a.en-fr.fr", "c\nd\n")
    units = [
        f"<tu><tuv xml:lang='en'><seg>{a}</seg></tuv><tuv xml:lang='fr'><seg>{b}</seg></tuv></tu>"
        for a, b in ("ac", "bd")
    ]
    files = {"x/a.zip": packed.getvalue(), "x/a.tmx": f"<tmx><body>{''.join(units)}</body></tmx>".encode()}
    hub.add(hub_name, files)
    for name in files:
        for keys in ({"train": f"hf://datasets/{hub_name}/{name}"}, {"path": hub_name, "train": name}):
            data = config(**keys, source="en", target="fr", streaming=streaming)
            if streaming:
                with pytest.raises(ConfigError, match=rf"{name}: .* set data.streaming=false"):
                    read(data)
            else:
                assert read(data) == [{"source": "a", "target": "c"}, {"source": "b", "target": "d"}]
    if not streaming:
        assert read(config(path=f"hf://datasets/{hub_name}/x/a.tmx", train="train[1:]", source="en", target="fr")) == [
            {"source": "b", "target": "d"}
        ]
        with pytest.raises(ConfigError, match=r"none.zip"):
            read(config(train=f"hf://datasets/{hub_name}/none.zip", source="en", target="fr"))


def test_places():
    data = config(path="hf://datasets/me/a@v1/news", train="train[:10%]")
    assert find_place(data, "train[:10%]") == Place("me/a", "train[:10%]", "v1", "news")
    assert find_repository(data, data.train) == ("me/a", "v1")
    assert find_repository(data.pinned({"train": "c"}), data.train) == ("me/a", "c")
    assert find_place(config(path="me/a", revision="x"), "dev") == Place("me/a", "dev", "x")
    with pytest.raises(ConfigError, match="of several data sets of the Hub; name each as a corpus"):
        find_repository(data, ["hf://datasets/me/a/x.csv", "hf://datasets/me/b/x.csv"])
    with pytest.raises(ConfigError, match="is one file, so it has no split 'validation'"):
        find_place(config(path="hf://datasets/me/a/x.csv"), "validation")
