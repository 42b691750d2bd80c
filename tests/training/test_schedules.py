import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers import get_scheduler

from pipeline.training.schedules import go_on, noam


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


def steps_of(args: dict, num_steps: int, resume_at: int | None = None, changes=(), **changed) -> list[float]:
    """Return the learning rates of some steps, in a run that is perhaps taken up with other arguments."""
    weight = torch.nn.Parameter(torch.ones(1))

    def make(values):
        optimizer = torch.optim.SGD([weight], lr=values["learning_rate"])
        return optimizer, get_scheduler(values["kind"], optimizer, values.get("warmup"), values.get("total"))

    (optimizer, schedule), rates = make(args), []
    for step in range(num_steps):
        if step == resume_at:
            saved_groups, saved = optimizer.state_dict(), schedule.state_dict()
            optimizer, schedule = make(args | changed)
            own = optimizer.param_groups[0]["lr"]
            optimizer.load_state_dict(saved_groups)
            optimizer.param_groups[0]["initial_lr"] = (args | changed)["learning_rate"]
            if changes:
                optimizer.param_groups[0]["lr"] = own
            go_on(schedule, optimizer.param_groups, saved, step, changes)
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step(*([1.0] if isinstance(schedule, ReduceLROnPlateau) else []))
    return rates


LINEAR = {"kind": "linear", "learning_rate": 0.3, "warmup": 2, "total": 9}
PLATEAU = {"kind": "reduce_lr_on_plateau", "learning_rate": 0.3}


@pytest.mark.parametrize("args", [LINEAR, {**LINEAR, "kind": "cosine"}, {**LINEAR, "kind": "inverse_sqrt"}, PLATEAU])
def test_a_schedule_goes_on_bit_by_bit(args):
    assert steps_of(args, 8, resume_at=3) == steps_of(args, 8)


def test_a_changed_schedule_is_that_of_its_step():
    """The rates are those of a run that had the new arguments from its beginning."""
    new = {"kind": "cosine", "learning_rate": 0.7, "total": 20}
    rates = steps_of(LINEAR, 8, 3, ["training.lr_scheduler_type"], **new)
    assert rates[:3] == steps_of(LINEAR, 3) and rates[3:] == steps_of(LINEAR | new, 8)[3:]


def test_a_schedule_that_follows_the_scores_keeps_its_count():
    """The rate falls after eleven scores that are no better, three of which came before."""
    rates = steps_of(PLATEAU, 16, 3, ["training.learning_rate"], learning_rate=0.7)
    assert rates == pytest.approx([0.3] * 3 + [0.7] * 9 + [0.07] * 4)
    assert steps_of(LINEAR, 5, 3, ["training.lr_scheduler_type"], **PLATEAU)[3:] == [0.3] * 2
    assert steps_of(PLATEAU, 5, 3, ["training.lr_scheduler_type"], **LINEAR)[3:] == steps_of(LINEAR, 5)[3:]
