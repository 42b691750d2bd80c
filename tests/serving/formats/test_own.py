"""The routes of the page: scores, attention, sampling, forecasts."""

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from pipeline.inference.hypotheses import Hypothesis


def test_the_page_gets_scores_tokens_and_attention(client):
    asked = {"text": "a b c", "num_alternatives": 3, "attention": True}
    answer = client().post("/api/answer", json=asked).json()
    best = answer["answers"][0]
    assert len(answer["answers"]) == 3
    assert [one["score"] for one in answer["answers"]] == sorted(one["score"] for one in answer["answers"])[::-1]
    assert len(best["tokens"]) == len(best["probabilities"]) == len(answer["attention"])
    assert {len(row) for row in answer["attention"]} == {len(answer["source_tokens"])} == {4}
    assert all(abs(sum(row) - 1) < 1e-3 for row in answer["attention"])


def test_sampling_by_a_seed_repeats(client):
    model = client()

    def sample(seed):
        settings = {"do_sample": True, "temperature": 3.0, "seed": seed}
        asked = {"text": "a b c", "num_alternatives": 4, "settings": settings}
        return [one["text"] for one in model.post("/api/answer", json=asked).json()["answers"]]

    assert sample(1) == sample(1) != sample(2)


def test_the_page_knows_what_is_served(client):
    facts = client(languages=("fr", "de")).get("/api/model").json()
    assert facts["task"] == "sequence_to_sequence" and facts["languages"] == {"source": [], "target": ["fr", "de"]}
    assert facts["has_attention"] and facts["engine"] == "torch" and facts["generation"]["max_new_tokens"] == 6
    series = client("forecaster").get("/api/model").json()
    assert series["series"] == ["up", "down"] and series["context_length"] == 8 and not series["has_attention"]


def test_a_forecaster_reads_a_table(client):
    model = client("forecaster")
    lines = ["time,down,up", *[f"2020-01-{day:02},{-day},{day}" for day in range(1, 13)]]
    series = model.post("/api/forecast", json={"csv": "\n".join(lines)}).json()["series"]
    assert series["up"]["past"] == [*map(float, range(5, 13))] and series["down"]["past"][-1] == -12
    assert len(series["up"]["forecast"]) == 3
    for table, message in (
        ("", "the first line must name"),
        ("up,down\n1,2", "1 rows, where a forecast needs 8"),
        ("\n".join(lines).replace("12", "x"), "not a number"),
        ("\n".join(lines).replace("-9", "1e308"), "too large"),
    ):
        refused = model.post("/api/forecast", json={"csv": table})
        assert refused.status_code == 400 and message in refused.json()["error"], refused.text
    assert model.post("/", json={"inputs": "a"}).status_code == 400


def test_an_empty_hypothesis_has_no_attention(client):
    answer = client().post("/api/answer", json={"text": "  ", "attention": True}).json()
    assert answer == {"answers": [], "source_tokens": None, "attention": None} and Hypothesis("").attention is None
