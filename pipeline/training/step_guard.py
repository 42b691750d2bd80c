"""What happens where a step or a pass ends."""

from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import DefaultFlowCallback

from pipeline.data.batch_loader import BatchLoader

MAX_NOT_FINITE = 10  # steps in a row without a finite loss and gradient, before the run goes back to a checkpoint


class PassEnd(TrainerCallback):
    """Lets `eval_strategy: epoch` and the like act where a pass over the data ends; Trainer sees an endless one."""

    def __init__(self, loader: BatchLoader):
        self.loader = loader

    def on_train_begin(self, args, state, control, **kwargs):
        self.pass_index = self.loader.position.pass_index

    def on_step_end(self, args, state, control, **kwargs):
        if self.loader.position.pass_index > self.pass_index:
            self.pass_index = self.loader.position.pass_index
            return DefaultFlowCallback().on_epoch_end(args, state, control, **kwargs)


class Guard(TrainerCallback):
    """Acts on a stop request, and on steps that were skipped, where a step ends; both of a TeacherForcingTrainer."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainer.skipped_in_a_row:
            control.should_save = False  # a checkpoint to go back to must lie before the trouble
        if self.trainer.skipped_in_a_row >= MAX_NOT_FINITE:
            self.trainer.roll_back()
            control.should_training_stop = False  # this was not the last step
        if self.trainer.is_stopped:
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.trainer.is_stopped:  # Trainer takes the stop for the end of a pass
            control.should_log = control.should_evaluate = control.should_save = False
