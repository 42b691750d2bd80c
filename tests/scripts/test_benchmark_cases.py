import torch
from torch.utils.flop_counter import FlopCounterMode

from scripts.benchmark_cases import count_operations, peak_allocated


def test_counted_operations_are_those_of_torch(make_model):
    """But for the products of attention itself, which torch counts under the kernel's name."""
    model = make_model(encoder_layers=2, decoder_layers=3, dropout=0.0).train()
    rows, source, target = 4, 7, 5
    with FlopCounterMode(display=False) as counter:
        ids = torch.randint(3, 40, (rows, source))
        model(input_ids=ids, labels=torch.randint(3, 40, (rows, target))).loss.backward()
    by_name = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
    products = sum(count for name, count in by_name.items() if name.split(".")[-1] in ("mm", "addmm"))
    assert count_operations(model.config, rows * source, rows * target) == products


def test_the_peak_is_of_what_a_step_takes_at_once():
    def step():
        for _ in range(3):
            first = torch.ones(1000, 1000)
            second = torch.ones(500, 1000)
            del first, second

    assert peak_allocated(step, torch.device("cpu")) == 1_500_000 * 4
