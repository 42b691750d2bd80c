"""What is counted, and that no text is told."""

import json
import logging

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from tests.serving.samples import post


def test_metrics_and_log_count_and_quote_nothing(client, caplog):
    model = client()
    with caplog.at_level(logging.INFO, "pipeline.serving"):
        post(model, "deepl", "a b c")
        model.get("/no/secret")
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "pipeline.serving"]
    assert [(line["format"], line["status"], line["texts"]) for line in lines] == [("deepl", 200, 1), ("own", 404, 0)]
    assert "a b c" not in caplog.text and "secret" not in caplog.text
    metrics = model.get("/metrics").text
    for line in (
        'teacher_forcing_requests_total{format="deepl",status="200"} 1.0',
        "teacher_forcing_texts_total 1.0",
        "teacher_forcing_batch_size_count 1.0",
        "teacher_forcing_waiting_texts 0.0",
    ):
        assert line in metrics
