"""What Prometheus reads of a server; a registry for each, so that two in one process share nothing."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counts of requests, texts, tokens and batches; none of them holds a text."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        names: dict[str, Any] = {"namespace": "teacher_forcing", "registry": self.registry}
        self.requests = Counter("requests", "Requests that have a response.", ("format", "status"), **names)
        self.seconds = Histogram(
            "request_seconds", "From a request's head to its response.", ("format",), buckets=SECONDS, **names
        )
        self.texts = Counter("texts", "Texts that were answered.", **names)
        self.characters = Counter("characters", "Characters of those texts.", **names)
        self.source_tokens = Counter("source_tokens", "Tokens of those texts.", **names)
        self.answer_tokens = Counter("answer_tokens", "Tokens of their answers.", **names)
        self.batches = Histogram("batch_size", "Texts that were answered together.", buckets=SIZES, **names)
        self.batch_seconds = Histogram("batch_seconds", "What the model takes for a batch.", buckets=SECONDS, **names)
        self.waiting = Gauge("waiting_texts", "Texts that wait for a batch.", **names)
        self.running = Gauge("running_requests", "Requests that have no response yet.", **names)

    def count_batch(self, size: int, seconds: float) -> None:
        self.batches.observe(size)
        self.batch_seconds.observe(seconds)

    def count_characters(self) -> int:
        return int(self.registry.get_sample_value("teacher_forcing_characters_total") or 0)

    def as_text(self) -> bytes:
        return generate_latest(self.registry)
