import pytest
import torch
from transformers import get_scheduler

from pipeline.training.schedules import noam


def test_noam_is_the_papers_equation():
    """lr = factor * d_model^-0.5 * min(step^-0.5, step * warmup^-1.5), at every step of four warm-ups."""
    arguments = noam(d_model=512, warmup_steps=100, factor=2.0)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=arguments["learning_rate"])
    schedule = get_scheduler(arguments["lr_scheduler_type"], optimizer, arguments["warmup_steps"], 400)
    for step in range(1, 401):
        optimizer.step()
        schedule.step()
        expected = 2.0 * 512**-0.5 * min(step**-0.5, step * 100**-1.5)
        assert schedule.get_last_lr()[0] == pytest.approx(expected, rel=1e-9)
