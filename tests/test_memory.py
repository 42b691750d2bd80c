import pytest
import torch

from pipeline import memory
from pipeline.memory import available_memory, peak_memory

CPU = torch.device("cpu")


def test_the_peak_of_memory_counts_from_the_beginning_of_the_block():
    with peak_memory(CPU) as read_peak:
        torch.ones(64 << 20, dtype=torch.uint8)  # too large to come from what was freed before
        assert 60 << 20 < read_peak() < 300 << 20


def test_a_container_has_less_memory_than_its_machine(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "CGROUPS", ((limit, "anon"),))
    machine = available_memory(CPU)
    assert machine > 1 << 20
    (tmp_path / "memory.stat").write_text("anon 40000\nfile 7\n")
    for text, expected in (("max", machine), ("100000", 60_000), ("30000", 0)):
        limit.write_text(f"{text}\n")
        assert available_memory(CPU) == pytest.approx(expected, rel=0.2)
