"""How many texts a second a server answers to one client, and to many at once; in turns.

    OMP_NUM_THREADS=1 teacher-forcing serve CHECKPOINT
    python scripts/benchmark_serving.py --file captions.txt

A client asks for its next text as soon as it has the answer to the last. The server's own metrics tell how long its
batches took.
"""

import argparse
import http.client
import json
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import local

WARM_UP = 40  # texts


@dataclass(frozen=True)
class Measured:
    """Answers in the order of the texts, the seconds that each took, and those of all together."""

    answers: list[str]
    latencies: list[float]
    seconds: float

    @property
    def rate(self) -> float:
        return len(self.answers) / self.seconds

    @property
    def p95(self) -> float:
        return sorted(self.latencies)[int(0.95 * len(self.latencies))]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", nargs="?", default="localhost:8000", help="of a server without a token")
    parser.add_argument("--file", type=Path, required=True, help="texts, one a line")
    parser.add_argument("--clients", type=int, default=16, help="(default: 16)")
    parser.add_argument("--texts", type=int, default=400, help="for all clients in a turn; a quarter for one alone")
    parser.add_argument("--turns", type=int, default=3, help="(default: 3)")
    arguments = parser.parse_args(argv)
    with arguments.file.open(encoding="utf-8") as stream:
        texts = [line.strip() for line in islice(stream, arguments.texts)]
    measure(arguments.address, texts[:WARM_UP], arguments.clients)
    ratios = []
    for turn in range(1, arguments.turns + 1):
        alone = measure(arguments.address, texts[: len(texts) // 4], 1)
        before = read_batches(arguments.address)
        together = measure(arguments.address, texts, arguments.clients)
        seconds, count = (
            after - earlier for after, earlier in zip(read_batches(arguments.address), before, strict=True)
        )
        differ = sum(one != other for one, other in zip(alone.answers, together.answers, strict=False))
        ratios.append(together.rate / alone.rate)
        print(
            f"turn {turn}: one client {alone.rate:.1f} texts/s; {arguments.clients} clients {together.rate:.1f} "
            f"({ratios[-1]:.2f} x), p95 {together.p95 * 1e3:.0f} ms, mean batch {seconds / count * 1e3:.0f} ms; "
            f"{differ} of {len(alone.answers)} answers differ"
        )
    print(f"times: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def measure(address: str, texts: Sequence[str], clients: int) -> Measured:
    """Let clients answer texts, each over a connection of its own."""
    kept = local()

    def ask(text: str) -> tuple[str, float]:
        if not hasattr(kept, "connection"):
            kept.connection = http.client.HTTPConnection(address)
        begin = time.perf_counter()
        body = json.dumps({"q": text, "source": "auto", "target": "fr"})
        kept.connection.request("POST", "/translate", body, {"Content-Type": "application/json"})
        response = kept.connection.getresponse()
        content = response.read()
        if response.status != 200:
            sys.exit(f"{address} answers {response.status}: {content[:200]!r}")
        return json.loads(content)["translatedText"], time.perf_counter() - begin

    begin = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers, latencies = zip(*pool.map(ask, texts), strict=True)
    return Measured([*answers], [*latencies], time.perf_counter() - begin)


def read_batches(address: str) -> tuple[float, float]:
    """Return the seconds of all batches so far, and their number, as the server counts them."""
    connection = http.client.HTTPConnection(address)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    return float(values["teacher_forcing_batch_seconds_sum"]), float(values["teacher_forcing_batch_seconds_count"])


if __name__ == "__main__":
    main()
