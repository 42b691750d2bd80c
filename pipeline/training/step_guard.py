"""Steps that must not count, and the end of a run that a signal asks for.

A step whose loss or gradient is not finite would spoil weights and moments for good. Its gradients are dropped instead,
so that the optimizer does nothing. Where that happens in many steps in a row, the weights are likely spoiled already:
the run goes back to its newest checkpoint, and on with the rows that follow.
"""

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate.utils import gather, reduce
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from pipeline.errors import RunError
from pipeline.signals import StopRequest
from pipeline.training.checkpoints import find_last_good, list_checkpoints

MAX_NOT_FINITE = 10  # steps in a row without a finite loss and gradient, before the run goes back to a checkpoint

FIX = "lower training.learning_rate, set training.max_grad_norm, or look at the data"

logger = logging.getLogger(__name__)


class StepGuard(TrainerCallback):
    """Skips steps that are not finite, goes back where that does not help, and stops where a step ends.

    In a step the trainer calls `add_loss` for each micro-batch and `check_step` before the optimizer. Trainer then
    calls `on_step_end` before it logs, evaluates and saves. All ranks come to the same decisions.

    Args:
        go_back: puts weights, optimizer and schedule back to a checkpoint; None where that is not possible.
        device: of the loss.

    Attributes:
        stop_request: a context around the training, which receives signals.
        is_stopped: whether any rank received one; the run ends with this step.
        skipped_steps: over the whole run, over its interruptions too.
        skipped_in_a_row: how many of the last steps were skipped.
    """

    def __init__(self, go_back: Callable[[Path], None] | None, device: torch.device):
        self.go_back = go_back
        self.stop_request = StopRequest()
        self.is_stopped = False
        self.skipped_steps = self.skipped_in_a_row = 0
        self._steps_since_log = self._skipped_since_log = 0
        self._rolled_back_to: Path | None = None
        self._loss = torch.zeros((), device=device)  # of the step so far, on this rank

    def add_loss(self, loss: Tensor) -> None:
        """Add the loss of a micro-batch; stays on the device, so that the CPU does not wait for it."""
        self._loss += loss

    def check_step(self, model: nn.Module, grad_norm: float, step: int, facts: Sequence[float] = ()) -> Tensor:
        """Drop the gradients of a step whose loss or gradient is not finite on any rank.

        Without gradients an optimizer changes neither weights nor moments. The ranks must meet here anyway, so here
        they also agree on a stop if any of them received a signal.

        Args:
            grad_norm: over all ranks, before clipping.
            step: its number, from 1, for the log.
            facts: F numbers that this rank tells the others.

        Returns:
            The facts of all ranks, (W, F), on the CPU.
        """
        told = torch.tensor([[0.0, self.stop_request.received is not None, *facts]], dtype=torch.float64)
        told = told.to(self._loss.device, torch.float32 if self._loss.device.type == "mps" else None)
        told[0, 0] = self._loss
        told = gather(told).cpu()
        loss, num_requests = told[:, :2].sum(0).tolist()
        self._loss.zero_()
        self.is_stopped = num_requests > 0
        self._steps_since_log += 1
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self.skipped_in_a_row = 0
        else:
            model.zero_grad()
            self.skipped_steps += 1
            self.skipped_in_a_row += 1
            self._skipped_since_log += 1
            logger.warning("step %d: the loss or its gradient is not finite; skipped", step)
        return told[:, 2:]

    def refuse_divergence(self, model: nn.Module, output_dir: Path, step: int) -> None:
        """Refuse to call a training finished that left nothing to use; every rank must ask.

        Raises:
            RunError: where weights are not finite, or no step was, in a run too short to go back.
        """
        if not has_finite_weights(model):
            raise RunError(explain_divergence(f"the weights are not finite after step {step}", output_dir))
        if step and self.skipped_in_a_row >= step:
            raise RunError(explain_divergence("no step had a finite loss and gradient", output_dir))

    def on_step_end(self, args, state, control, **kwargs):
        if self.skipped_in_a_row:
            control.should_save = False  # a checkpoint to go back to must lie before the trouble
        if self.skipped_in_a_row >= MAX_NOT_FINITE:
            self.roll_back(Path(args.output_dir))
            control.should_training_stop = False  # this was not the last step, even if it had the last number
        if self.is_stopped:
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.is_stopped:  # Trainer takes the stop for the end of a pass
            control.should_log = control.should_evaluate = control.should_save = False

    def roll_back(self, output_dir: Path) -> None:
        """Go back to the newest checkpoint, and on with the rows that follow those that led to the trouble.

        To go back and skip the rows is the remedy of PaLM (https://arxiv.org/abs/2204.02311, section 5.1). If the
        trouble comes again without a checkpoint in between, rows are not its cause, and the run ends.

        Raises:
            RunError: when there is nothing to go back to, or it did not help.
        """
        problem = f"the loss or its gradient was not finite in {MAX_NOT_FINITE} steps in a row"
        checkpoint = next(iter(list_checkpoints(output_dir)), None)
        if checkpoint is None:
            raise RunError(f"{problem}, with no checkpoint to go back to; {FIX}")
        if checkpoint == self._rolled_back_to:
            raise RunError(f"{problem}, after going on from {checkpoint}; {FIX}")
        if self.go_back is None:
            raise RunError(f"{problem}, and DeepSpeed cannot go back to {checkpoint} in a running process; {FIX}")
        logger.warning("%s; going back to %s, and on with the rows that follow", problem, checkpoint)
        self.go_back(checkpoint)
        self._rolled_back_to = checkpoint
        self.skipped_in_a_row = self._steps_since_log = self._skipped_since_log = 0

    def take_mean_loss(self, mean: float) -> float:
        """Return the mean loss over the steps since the last log that were not skipped, and start anew.

        Args:
            mean: over all steps since the last log, in which a loss that is not finite counts as 0.
        """
        kept = self._steps_since_log - self._skipped_since_log
        mean = mean * self._steps_since_log / kept if kept else math.nan
        self._steps_since_log = self._skipped_since_log = 0
        return mean


def has_finite_weights(model: nn.Module) -> bool:
    """Tell whether all weights are finite, on all ranks, each of which must ask."""
    shards = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in model.parameters()]
    is_spoiled = torch.stack([~shard.detach().isfinite().all() for shard in shards]).any().float()
    return reduce(is_spoiled, reduction="sum").item() == 0


def explain_divergence(problem: str, output_dir: Path) -> str:
    """Say that a run diverged, which checkpoint was still good, and what to do."""
    good = find_last_good(output_dir)
    last = f"the last good checkpoint is {good}" if good else "there is no good checkpoint"
    return f"the run diverged: {problem}; it counts as unfinished, and nothing is published; {last}; {FIX}"
