"""What the benchmark of a server says of one that answers in a known way."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from scripts import benchmark_serving

METRICS = "# HELP x\nteacher_forcing_batch_seconds_sum {}\nteacher_forcing_batch_seconds_count {}\n"


class Reversing(BaseHTTPRequestHandler):
    """Answers a text by itself reversed, and says that each answer took a batch of 0.5 seconds."""

    protocol_version = "HTTP/1.1"
    answered = 0

    def do_POST(self):
        text = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["q"]
        Reversing.answered += 1
        self.answer(503 if text == "fail" else 200, json.dumps({"translatedText": text[::-1]}))

    def do_GET(self):
        self.answer(200, METRICS.format(Reversing.answered / 2, Reversing.answered))

    def answer(self, status, text):
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format, *args):
        return


@pytest.fixture
def address():
    with ThreadingHTTPServer(("127.0.0.1", 0), Reversing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_rates_and_batches(address, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("".join(f"text {number}\n" for number in range(60)))
    words = [address, "--file", str(tmp_path / "texts.txt"), "--texts", "40", "--turns", "2", "--clients", "4"]
    benchmark_serving.main(words)
    *turns, last = capsys.readouterr().out.splitlines()
    assert len(turns) == 2 and re.fullmatch(r"times: [\d.]+ \([\d.]+ to [\d.]+\)", last)
    assert all("mean batch 500 ms; 0 of 10 answers differ" in turn for turn in turns)
    measured = benchmark_serving.measure(address, ["abc", "de"], 2)
    assert measured.answers == ["cba", "ed"] and len(measured.latencies) == 2


def test_an_error_of_the_server_ends_it(address):
    with pytest.raises(SystemExit, match=r"answers 503: .*liaf"):
        benchmark_serving.measure(address, ["fail"], 1)
