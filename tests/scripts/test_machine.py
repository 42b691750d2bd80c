import torch

from scripts.machine import describe_machine, matrix_product_rate, peak_memory


def test_the_machine_is_named():
    machine = describe_machine("cpu")
    assert machine["torch"] == torch.__version__ and machine["device"] == "cpu"
    assert machine["processor"] and int(machine["cores"]) >= 1


def test_the_rate_of_matrix_products_is_that_of_the_size():
    assert matrix_product_rate("cpu", size=64, seconds=0.01) > 1e6


def test_the_peak_of_memory_counts_from_the_beginning_of_the_block():
    with peak_memory("cpu") as read_peak:
        torch.ones(32 << 20, dtype=torch.uint8)
        assert 30 << 20 < read_peak() < 200 << 20
