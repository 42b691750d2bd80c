"""Splits at addresses of the web: http:// on a server of this machine that serves parts."""

import io
import re
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipeline.data.hub_reading import iterate_stream
from pipeline.data.splits import fingerprint_split, open_split
from pipeline.errors import ConfigError, RunError
from tests.data.remote import FILES, STREAMING, config, read
from tests.hub_data import ROWS, as_jsonl

pytestmark = pytest.mark.usefixtures("little_sleep")


class Site(ThreadingHTTPServer):
    """Files by their names; `faults` are answers that come first, `log` what was asked."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), SiteHandler)
        self.files: dict[str, bytes] = {}
        self.faults: list[int | str] = []
        self.log: list[tuple[str, str, str | None]] = []
        self.gives_parts, self.tag = True, "1"
        self.address = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address) -> None:
        pass  # a client that went away


class SiteHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Site

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        site = self.server
        site.log.append((self.command, self.path, self.headers.get("Authorization")))
        content = site.files.get(self.path.partition("?")[0].removeprefix("/"))
        fault = site.faults.pop(0) if site.faults and self.command == "GET" else None
        if self.path.startswith("/away/"):
            return self.send(302, b"", {"Location": self.path.removeprefix("/away/")})
        if isinstance(fault, int) or content is None:
            return self.send(fault if isinstance(fault, int) else 404, b"")
        status, headers = 200, {"ETag": f'"{site.tag}"'}
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        if asked and site.gives_parts:
            begin, end = int(asked[1]), min(int(asked[2]), len(content) - 1)
            status, headers["Content-Range"] = 206, f"bytes {begin}-{end}/{len(content)}"
            content = content[begin : end + 1]
        self.send(status, content, headers, len(content) // 2 if fault == "cut" else len(content))

    do_HEAD = do_GET

    def send(self, status: int, content: bytes, headers: dict[str, str] | None = None, sent: int | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:sent])
        if sent is not None and sent < len(content):
            self.close_connection = True


@pytest.fixture
def site():
    running = Site()
    thread = threading.Thread(target=running.serve_forever, args=[0.01])
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


@STREAMING
@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.json", *(pytest.param(name, marks=pytest.mark.slow) for name in ("a.csv.gz", "a.parquet"))]
)
def test_files_of_the_web(site, streaming, name):
    """As `data.path` and in `data.train`; without streaming they are downloaded once; no login is sent."""
    site.files = FILES
    address = f"{site.address}/{name}"
    assert read(config(path=address, streaming=streaming)) == ROWS
    assert read(config(train=address, streaming=streaming)) == ROWS
    assert all(login is None for _, _, login in site.log)
    if not streaming:
        assert read(config(train=[f"{address}[:10]", f"{address}[290:]"])) == ROWS[:10] + ROWS[290:]
        assert [method for method, _, _ in site.log].count("GET") == 1
        assert read(config(path=f"{address}?download=1")) == ROWS


@STREAMING
def test_parallel_texts_of_the_web(site, streaming):
    """They are read from this machine, so they are not streamed."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.en-fr.en", "a\nb\n")
        archive.writestr("a.en-fr.fr", "c\nd\n")
    units = "".join(
        f"<tu><tuv xml:lang='en'><seg>{source}</seg></tuv><tuv xml:lang='fr'><seg>{target}</seg></tuv></tu>"
        for source, target in ("ac", "bd")
    )
    site.files = {"a.zip": packed.getvalue(), "a.tmx": f"<tmx><body>{units}</body></tmx>".encode()}
    for name in site.files:
        data = config(train=f"{site.address}/{name}", source="en", target="fr", streaming=streaming)
        if streaming:
            with pytest.raises(ConfigError, match=rf"{name}: .* set data.streaming=false"):
                read(data)
        else:
            assert read(data) == [{"source": "a", "target": "c"}, {"source": "b", "target": "d"}]


@pytest.mark.parametrize("fault", [503, "cut"])
def test_transient_faults_of_the_web(site, fault):
    """A download begins again; a stream goes on behind the rows that came."""
    site.files = FILES
    address = f"{site.address}/a.jsonl"
    site.faults = [fault] * 3
    assert read(config(path=address)) == ROWS
    data = config(path=address, streaming=True)
    rows, sources = open_split(data, "train", data.columns), []
    for columns, _ in iterate_stream(rows, 70, 30):
        sources += columns["source"]
        site.faults = site.faults or ([fault] * 2 if len(sources) == 140 else [])
    assert sources == [row["source"] for row in ROWS]


@STREAMING
def test_a_fingerprint_tells_another_content_of_an_address(site, streaming):
    site.files = dict(FILES)
    data = config(path=f"{site.address}/a.jsonl", streaming=streaming)
    fingerprint = fingerprint_split(data, "train", data.columns)
    assert fingerprint == fingerprint_split(data, "train", data.columns)
    site.files["a.jsonl"], site.tag = as_jsonl(ROWS[::-1]), "2"  # of the same size
    assert fingerprint != fingerprint_split(data, "train", data.columns)
    assert read(data) == ROWS[::-1]


def test_what_is_not_read(site, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.data.web_reading.LOCAL_HOSTS", ("127.0.0.1",))  # so localhost is another machine
    site.files = FILES | {"b.jsonl": b'{"source": "a", "target": "b"}\n{"sou\n'}
    (tmp_path / "secret.jsonl").write_bytes(as_jsonl(ROWS))
    for address, message in (
        ("http://example.com/a.jsonl", "only https is read"),
        (f"{site.address}/away/http://localhost:{site.server_port}/a.jsonl", "only https is read"),
        (f"{site.address}/away/file://{tmp_path}/secret.jsonl", "file|Redirect"),
        ("https://me:secret@example.com/a.jsonl", "leave the login out"),
        (f"{site.address}/folder", "is not the address of a file"),
        (f"{site.address}/none.jsonl", "there is no such file; check the address"),
        ("hf://models/me/a/a.jsonl", "is a model; data sets are at hf://datasets/owner/name"),
        ("hf://datasets/me", "hf://datasets/me"),
    ):
        for streaming in (False, True):
            with pytest.raises(ConfigError, match=message) as raised:
                read(config(path=address, streaming=streaming, hub_patience=0))
            assert "secret@" not in str(raised.value)
    with pytest.raises(ConfigError, match=r"an address with a . is not streamed"):
        read(config(path=f"{site.address}/a.jsonl?download=1", streaming=True))
    rows = open_split(data := config(path=f"{site.address}/b.jsonl", streaming=True), "train", data.columns)
    assert [row["(place)"] for row in rows] == [f"{site.address}/b.jsonl:{number}" for number in (1, 2)]
    site.gives_parts = False
    site.files["large.jsonl"] = as_jsonl(ROWS * 10)
    assert len(read(config(path=f"{site.address}/large.jsonl"))) == 3_000
    with pytest.raises(ConfigError, match=r"gives no parts of a file; set data.streaming=false"):
        read(config(path=f"{site.address}/large.jsonl", streaming=True))
    with pytest.raises(RunError, match="the server is not reached"):
        read(config(path="http://127.0.0.1:9/a.jsonl", hub_patience=0))
