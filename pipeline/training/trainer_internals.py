"""The only file that overrides or uses private names of transformers' Trainer.

transformers may rename a private method in any minor release, and an override of the old name would then never be
called, without an error: no guard, no atomic save. `tests/training/test_trainer_internals.py` therefore checks each
name in this file: that it exists with the parameters expected here, and that each override is called in a short run.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path
from typing import Any

from accelerate.utils.constants import FSDP_MODEL_NAME
from torch import Tensor, nn
from transformers import PreTrainedModel, Seq2SeqTrainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_callback import ExportableState

from pipeline.errors import RunError
from pipeline.tasks.trained_model import find_not_finite, name_first
from pipeline.training import checkpoints
from pipeline.training.changes import change_scores
from pipeline.training.out_of_memory import lost_worker_explained
from pipeline.training.ranks import together
from pipeline.training.schedules import go_on
from pipeline.training.unsharded import gather_parameters, load_into_shards

# Argument of the config -> what a group of an optimizer's parameters calls it.
OPTIMIZER_SETTINGS = {
    "training.learning_rate": ("lr", "initial_lr"),
    "training.lr_scheduler_type": ("lr", "initial_lr"),
    "training.weight_decay": ("weight_decay",),
    "training.adam_beta1": ("betas",),
    "training.adam_beta2": ("betas",),
    "training.adam_epsilon": ("eps",),
}


class ReceivedState:
    """Takes the state that Trainer has for a schedule."""

    state: dict[str, Any]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


class TrainerInternals(Seq2SeqTrainer, ABC):
    """Seq2SeqTrainer with its private seams as public methods, for `TeacherForcingTrainer` to fill in and to call.

    Filled in: `label_batch`, `before_optimizer_step`, `save_checkpoint`, `load_raw_weights`, `should_load_best_model`.
    Called: `save_training_state`, `save_trainer_state`, `load_training_state`, `unsharded_model`.

    Args:
        changes: keys of the config whose values are others than those that the checkpoint to go on from was made with.

    Attributes:
        plain_model: the model as an object of its own class. Under FSDP2 it is a copy, whose parameters are those of
            the last call of `unsharded_model`; its config and sizes are always right.
    """

    def __init__(self, changes: Collection[str] = (), **kwargs):
        self.changes = changes
        super().__init__(**kwargs)
        if self.compute_loss_func is not None:
            # Trainer takes a `forward` with **kwargs for one that divides its loss by `num_items_in_batch`, and would
            # pass it on. Here `compute_loss_func` divides, and the models of others may refuse the argument.
            self.model_accepts_loss_kwargs = False
        self.plain_model: PreTrainedModel = copy.deepcopy(self.model) if self.is_fsdp_enabled else self.model

    # What TeacherForcingTrainer fills in.

    @abstractmethod
    def label_batch(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the batch with its items as "labels", -100 where there is none."""

    @abstractmethod
    def before_optimizer_step(self, model: nn.Module, grad_norm: float) -> None:
        """Look at a step whose gradients are complete; called on every rank, with the norm over all of them."""

    @abstractmethod
    def save_checkpoint(self) -> None:
        """Write a checkpoint of this step."""

    @abstractmethod
    def load_raw_weights(self, checkpoint: Path) -> None:
        """Take the weights to train on from a checkpoint whose model is loaded, where they are others."""

    @abstractmethod
    def should_load_best_model(self) -> bool:
        """Return whether the best checkpoint can be loaded at the end of a training that asks for it."""

    # Overrides of private methods, and of one that is public.

    def _init_training_state(self, *args):
        """Look again for the best checkpoint: the state knows its path, and the folder may have been moved.

        Trainer takes the steps of logging, evaluation and saving from the checkpoint; they are those of the arguments.
        """
        result = super()._init_training_state(*args)
        self.state.compute_steps(self.args, self.state.max_steps)
        if change_scores(self.changes):
            self.state.best_metric = self.state.best_global_step = None
        self.find_best_checkpoint()
        return result

    def _load_callback_state(self):
        """Take what callbacks counted from the checkpoint, and their settings from the config."""
        settings = {
            type(callback): callback.state()["args"]
            for callback in self.callback_handler.callbacks
            if isinstance(callback, ExportableState)
        }
        super()._load_callback_state()
        for callback in self.callback_handler.callbacks:
            for name, value in settings.get(type(callback), {}).items():
                setattr(callback, name, value)

    def _load_optimizer_and_scheduler(self, checkpoint):
        """Take moments and the place in the schedule from a checkpoint, and settings from the arguments.

        Trainer takes all from the checkpoint. A learning rate is a function of the arguments and the step, or, where it
        follows the scores, goes on from the checkpoint's unless `learning_rate` changed.
        """
        if checkpoint is None or self.is_deepspeed_enabled:  # DeepSpeed loads both by itself
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        schedule: Any = self.lr_scheduler  # type: ignore[has-type]
        received = ReceivedState()
        own = [{**group, "params": None} for group in self.optimizer.param_groups]
        self.lr_scheduler = received
        super()._load_optimizer_and_scheduler(checkpoint)
        self.lr_scheduler = schedule
        changed = [names for key, names in OPTIMIZER_SETTINGS.items() if key in self.changes]
        for group, settings in zip(self.optimizer.param_groups, own, strict=True):
            group.update({name: settings[name] for names in changed for name in names if name in settings})
        go_on(schedule, self.optimizer.param_groups, received.state, self.state.global_step, self.changes)

    def _load_scaler(self, checkpoint):
        """Leave the loss scale of fp16 alone where this run goes on without it."""
        if self.accelerator.scaler is not None:
            super()._load_scaler(checkpoint)

    def _run_epoch(self, **kwargs):
        """Do no step more in a run that was killed between its last step and its result; Trainer would do one."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**kwargs)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Take the batches of a step; what one rank cannot read ends all ranks, before any of them waits for it."""

        def take() -> list[dict[str, Tensor]]:
            with lost_worker_explained(Path(self.args.output_dir)):
                return [next(epoch_iterator) for _ in range(num_batches)]

        batches = together(take)
        return batches, self._get_num_items_in_batch(batches, device)

    def _get_num_items_in_batch(self, batch_samples, device):
        """Count the items of a task's loss: Trainer counts "labels", which not every task's batches have."""
        return super()._get_num_items_in_batch([self.label_batch(batch) for batch in batch_samples], device)

    def _get_grad_norm(self, model, grad_norm=None):
        """Let a step be dropped between the last backward pass and the optimizer.

        The callback `on_pre_optimizer_step` comes later but gets no norm, and computing it again would cost a pass over
        all gradients.
        """
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.before_optimizer_step(model, float(grad_norm or 0.0))
        return grad_norm

    def _save_checkpoint(self, model, trial):
        """Replace Trainer's, which writes into the final folder, so that a kill leaves half a checkpoint there."""
        self.save_checkpoint()

    def _finalize_training(self, *args):
        """Remove no checkpoint: with a limit of one Trainer would leave the best only, of a stopped run too.

        https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/trainer.py
        """
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args)
        finally:
            self.args.save_total_limit = limit

    def _load_best_model(self):
        """Load the best checkpoint only when it is whole; under FSDP2 as any other, as ours hold whole models."""
        if not self.should_load_best_model():
            return
        if self.is_fsdp_enabled:
            self._load_from_checkpoint(self.state.best_model_checkpoint)
        else:
            super()._load_best_model()

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        """Under FSDP2 load a whole model; Trainer expects FSDP's own file, which our checkpoints do not have.

        Raises:
            RunError: for weights that are not finite, as versions before 0.2.0 could save them.
        """
        if self.is_fsdp_enabled:
            load_into_shards(self.model, type(self.plain_model), Path(resume_from_checkpoint))
            self.load_raw_weights(Path(resume_from_checkpoint))
            return
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.load_raw_weights(Path(resume_from_checkpoint))
        if names := find_not_finite(self.model):
            raise RunError(
                f"{resume_from_checkpoint} has weights that are not finite: {name_first(names)}; "
                "name an earlier checkpoint by training.resume_from_checkpoint"
            )

    def _issue_warnings_after_load(self, load_result):
        """Refuse a checkpoint that is not this model's, of which Trainer only warns.

        Raises:
            RunError: naming weights that are missing or belong to another model.
        """
        weights = dict(self.model.named_parameters(remove_duplicate=False))
        loaded = {weight.data_ptr() for name, weight in weights.items() if name not in load_result.missing_keys}
        missing = [
            name for name in load_result.missing_keys if name in weights and weights[name].data_ptr() not in loaded
        ]
        for names, problem in ((missing, "has no weights for"), (load_result.unexpected_keys, "has weights for")):
            if names:
                raise RunError(f"the checkpoint {problem} {name_first(names)}, so it is not one of this model")

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Under FSDP2 save the ordinary copy, so that `from_pretrained` loads it anywhere; else as Trainer does."""
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        model = self.unsharded_model()
        if self.args.should_save:
            model.save_pretrained(output_dir)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(output_dir)

    def _save(self, output_dir=None, state_dict=None):
        """Leave out the training arguments, a binary file that can hold the Hub token and that nothing reads.

        https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/trainer.py
        """
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            Path(output_dir or self.args.output_dir, TRAINING_ARGS_NAME).unlink(missing_ok=True)

    # Private methods under public names.

    def unsharded_model(self) -> PreTrainedModel:
        """Return the model; under FSDP2 an ordinary copy with all parameters, which every rank must ask for."""
        if self.is_fsdp_enabled:
            gather_parameters(self.model, self.plain_model.to(self.args.device))
        return self.plain_model

    def save_training_state(self, folder: Path) -> None:
        """Write model, optimizer, schedule, loss scale and random states; every rank must call it."""
        self.save_model(str(folder), _internal_call=True)  # internal: no push to the Hub
        self._save_optimizer_and_scheduler(str(folder))
        if self.is_world_process_zero():  # under FSDP it writes the weights as well, which model.safetensors has
            (folder / f"{FSDP_MODEL_NAME}.bin").unlink(missing_ok=True)
        self._save_scaler(str(folder))
        self._save_rng_state(str(folder))

    def find_best_checkpoint(self) -> None:
        """Set `state.best_model_checkpoint` from the best step; None if the run's folder has no such checkpoint."""
        step = self.state.best_global_step
        best = checkpoints.checkpoint_path(Path(self.args.output_dir), step) if step else None
        self.state.best_model_checkpoint = str(best) if best is not None and best.is_dir() else None

    def save_trainer_state(self, folder: Path) -> None:
        """Write step, logs and best score, with the states of the callbacks, such as the patience of early stopping."""
        for callback in (*self.callback_handler.callbacks, self.control):
            if isinstance(callback, ExportableState):
                self.state.stateful_callbacks[type(callback).__name__] = callback.state()
        self.state.save_to_json(str(folder / TRAINER_STATE_NAME))

    def load_training_state(self, checkpoint: Path) -> None:
        """Put a training that is under way back to a checkpoint: all but the data, the random states and callbacks."""
        before = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        self._load_from_checkpoint(str(checkpoint))
        self.state.global_step = before.global_step
        self._load_optimizer_and_scheduler(str(checkpoint))
        self._load_scaler(str(checkpoint))
        for name in ("log_history", "best_metric", "best_global_step"):
            setattr(self.state, name, getattr(before, name))
        self.find_best_checkpoint()
        # Trainer's mean loss: a sum, and the step since which it sums.
        self._tr_loss.zero_()
        self._globalstep_last_logged = self.state.global_step
