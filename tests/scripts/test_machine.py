import torch

from scripts.machine import describe_machine, matrix_product_rate


def test_the_machine_is_named():
    machine = describe_machine("cpu")
    assert machine["torch"] == torch.__version__ and machine["device"] == "cpu"
    assert machine["processor"] and int(machine["cores"]) >= 1


def test_the_rate_of_matrix_products_is_that_of_the_size():
    assert matrix_product_rate("cpu", "float32", size=64, seconds=0.01) > 1e6
