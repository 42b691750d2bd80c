"""Seq2SeqTrainer that is hard to break: exact positions, whole checkpoints, guarded steps, a stop that saves first."""

import copy
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from accelerate.utils.constants import FSDP_MODEL_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from tqdm import tqdm
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    Seq2SeqTrainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_callback import ExportableState

from pipeline.data.batch_loader import BatchLoader
from pipeline.errors import RunError, Stopped
from pipeline.inference.evaluation import Evaluation, evaluate
from pipeline.inference.metrics import Metric
from pipeline.signals import StopRequest
from pipeline.tasks.base import Feature, Task
from pipeline.training import checkpoints
from pipeline.training.step_guard import MAX_NOT_FINITE, Guard, PassEnd

STATE_FILE = "run_state.json"
CARRIED_FILE = "carried_{rank}.safetensors"
WHOLE = StateDictOptions(full_state_dict=True)

logger = logging.getLogger(__name__)


class TeacherForcingTrainer(Seq2SeqTrainer):
    """Trains any task; what it knows of one is the `Task` protocol.

    Args:
        task: makes batches of rows, and losses and predictions of outputs.
        loader: the training batches.
        validation: features to evaluate on while training.
        generation: how a model that generates makes its predictions while training.
        metrics: scores of predictions; without any, losses alone are evaluated.
        show: how many of them to print.
        revision: of the data, kept in the checkpoints.
    """

    def __init__(
        self,
        *,
        task: Task,
        loader: BatchLoader,
        validation: Sequence[Feature] = (),
        generation: GenerationConfig | None = None,
        metrics: Sequence[Metric] = (),
        show: int = 0,
        revision: str | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        **kwargs,
    ):
        self.task, self.loader, self.validation = task, loader, validation
        self.generation, self.metrics, self.show, self.revision = generation, metrics, show, revision
        super().__init__(
            train_dataset=loader.stream,
            eval_dataset=validation or None,
            processing_class=task.tokenizer,
            callbacks=[*callbacks, PassEnd(loader), Guard(self)],
            **kwargs,
        )
        if self.compute_loss_func is not None:
            self.model_accepts_loss_kwargs = False
        self._counts = torch.zeros(2, device=self.args.device)  # target tokens since the last log, and right ones
        self._loss = torch.zeros((), device=self.args.device)  # of the step in hand
        self._steps_since_log = self._skipped_since_log = 0
        self._last_log = 0.0
        self.skipped_steps = self.skipped_in_a_row = 0
        self._rolled_back_to: Path | None = None
        self.whole: Any = copy.deepcopy(self.model) if self.is_fsdp_enabled else self.model
        self.stop_request = StopRequest()
        self.is_stopped = False

    def get_train_dataloader(self) -> BatchLoader:
        """The loader as it is: it deals out batches to the ranks itself, and Trainer moves them to the device."""
        return self.loader

    def train(self, resume_from_checkpoint: str | None = None, **kwargs):
        """As `Trainer.train`, going on at the very row where the checkpoint was written.

        Raises:
            Stopped: after SIGTERM or SIGINT, when the step in hand is finished and saved.
            RunError: when loss or gradients stay without finite values, a checkpoint cannot be written, or a loader
                worker hangs.
        """
        if resume_from_checkpoint:
            state = json.loads(Path(resume_from_checkpoint, STATE_FILE).read_text())
            self.loader.load_state_dict(state["data"])
            self.skipped_steps = state["skipped_steps"]
            self._load_carried(Path(resume_from_checkpoint))
        self._last_log = time.perf_counter()
        with self.stop_request:
            output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        if self.is_stopped:
            raise Stopped(f"stopped and saved after step {self.state.global_step}; the same command goes on from there")
        return output

    def _init_training_state(self, *args):
        result = super()._init_training_state(*args)
        self._find_best()  # the state knows its path, and the folder may have been moved
        return result

    def _run_epoch(self, **kwargs):
        if self.state.global_step >= self.state.max_steps:  # killed between the last step and the result
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        given = self.task.with_state(inputs)
        if self.compute_loss_func is not None and self.model.config.is_encoder_decoder:
            # The function gets the labels, and the model what it would have made of them.
            given["decoder_input_ids"] = self.model.prepare_decoder_input_ids_from_labels(labels=inputs["labels"])
        loss, outputs = super().compute_loss(model, given, True, num_items_in_batch)
        self.task.keep_state(outputs)
        with torch.no_grad():
            self._counts += torch.stack([count.sum() for count in self.task.count_items(outputs, inputs)])
            self._loss += loss
        return (loss, outputs) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples, device):
        return super()._get_num_items_in_batch([self.task.label_batch(batch) for batch in batch_samples], device)

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        return torch.where(loss.isfinite(), loss, torch.zeros_like(loss))  # `log` leaves the step out of the mean

    def _get_grad_norm(self, model, grad_norm=None):
        """The norm; a step whose loss or gradient is not finite on any rank loses its gradients, so changes nothing.

        Here all ranks meet anyway, so here they agree on a stop as well, if any of them got a signal.
        """
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # fp16 finds its loss scale by gradients that overflow, and its scaler skips those steps itself.
        norm = 0.0 if self.accelerator.scaler is not None else float(grad_norm or 0.0)
        is_requested = torch.full_like(self._loss, self.stop_request.received is not None)
        loss, requests = self.accelerator.reduce(torch.stack([self._loss, is_requested])).tolist()
        is_finite = math.isfinite(loss) and math.isfinite(norm)
        self.is_stopped = requests > 0
        self._loss.zero_()
        self._steps_since_log += 1
        if is_finite:
            self.skipped_in_a_row = 0
        else:
            model.zero_grad()
            self.skipped_steps += 1
            self.skipped_in_a_row += 1
            self._skipped_since_log += 1
            logger.warning("step %d: the loss or its gradient is not finite; skipped", self.state.global_step + 1)
        return grad_norm

    def roll_back(self) -> None:
        """Puts weights, optimizer and schedule back to the newest checkpoint, and goes on with the rows that follow.

        To go back and skip the rows that led to the trouble is the remedy of PaLM (https://arxiv.org/abs/2204.02311,
        section 5.1). A second time without a checkpoint in between is the end.

        Raises:
            RunError: when there is nothing to go back to, or it did not help.
        """
        problem = f"the loss or its gradient was not finite in {MAX_NOT_FINITE} steps in a row"
        mend = "lower training.learning_rate, set training.max_grad_norm, or look at the data"
        checkpoint = next(iter(checkpoints.list_checkpoints(Path(self.args.output_dir))), None)
        if checkpoint is None:
            raise RunError(f"{problem}, with no checkpoint to go back to; {mend}")
        if checkpoint == self._rolled_back_to or self.is_deepspeed_enabled:
            raise RunError(f"{problem}, after going on from {checkpoint}; {mend}")
        logger.warning("%s; going back to %s, and on with the rows that follow", problem, checkpoint)
        self._load_from_checkpoint(str(checkpoint))
        self._load_optimizer_and_scheduler(str(checkpoint))
        self._load_scaler(str(checkpoint))
        self._load_carried(checkpoint)
        before = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        for name in ("global_step", "log_history", "best_metric", "best_global_step"):
            setattr(self.state, name, getattr(before, name))
        self._find_best()
        self._tr_loss.zero_()
        self._globalstep_last_logged = self.state.global_step
        self._rolled_back_to, self.skipped_in_a_row = checkpoint, 0
        self._steps_since_log = self._skipped_since_log = 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            items, correct = self.accelerator.reduce(self._counts).tolist()
            if self.task.accuracy is not None:
                logs[self.task.accuracy] = correct / max(items, 1)
            seconds = time.perf_counter() - self._last_log
            logs["items_per_second"] = items / seconds
            self._last_log += seconds
            self._counts.zero_()
            done = self._steps_since_log - self._skipped_since_log
            logs["loss"] = logs["loss"] * self._steps_since_log / done if done else math.nan
            self._steps_since_log = self._skipped_since_log = 0
        self.state.epoch = self.loader.position.epoch
        super().log(logs | {name: count for name, count in self.skipped.items() if count}, start_time)

    @property
    def skipped(self) -> dict[str, int]:
        """What was left out so far: bad rows, over all passes, and steps that were not finite."""
        position = self.loader.position
        skipped_rows = position.skipped_before + position.skipped_in_window
        return {"skipped_rows": skipped_rows, "skipped_steps": self.skipped_steps}

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval", **gen_kwargs):
        """Scores the validation features; see `pipeline.inference.evaluation.evaluate`."""
        begin = time.perf_counter()
        result = self.score(self.validation, self.generation)
        self._last_log += time.perf_counter() - begin  # which is of training alone
        numbers = {f"{metric_key_prefix}_{name}": value for name, value in result.numbers.items()}
        self.log(dict(numbers))
        if self.is_world_process_zero() and self.metrics:
            for prediction in result.predictions[: self.show]:
                tqdm.write(str(prediction))
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, numbers)
        return numbers

    def score(self, features: Sequence[Feature], generation: GenerationConfig | None) -> Evaluation:
        return evaluate(
            self.whole_model(),
            self.task,
            features,
            batch_size=self.args.per_device_eval_batch_size,
            generation=generation,
            metrics=self.metrics,
        )

    def load_average(self, count: int) -> None:
        """Puts the mean of the newest checkpoints' weights in the place of the last ones.

        Raises:
            RunError: when there are fewer, or one is damaged.
        """
        found = checkpoints.list_checkpoints(Path(self.args.output_dir))[:count]
        if len(found) < count:
            raise RunError(
                f"evaluation.average_checkpoints: {self.args.output_dir} has {len(found)} of {count}; save more often"
            )
        self.model.load_state_dict(checkpoints.average(found), strict=False)  # tied weights are there by one name

    def whole_model(self) -> PreTrainedModel:
        """The model; under FSDP2 an ordinary copy that all ranks have all of, which every rank must ask for.

        Ranks generate different numbers of tokens, so cannot share the work on one; FSDP2 gives the model a class
        of its own, with which `save_pretrained` would write FSDP's code into the checkpoint in place of the model's.
        """
        if self.is_fsdp_enabled:
            state = get_model_state_dict(self.model, options=WHOLE)
            self.whole.to(self.args.device).load_state_dict(state)
        return self.whole

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        model = self.whole_model()
        if self.args.should_save:
            model.save_pretrained(output_dir)
            if self.task.tokenizer is not None:
                self.task.tokenizer.save_pretrained(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        if self.is_fsdp_enabled:
            whole = type(self.whole).from_pretrained(resume_from_checkpoint)
            # Tied weights by one name alone: torch finds no place for the others, but they are the same anyway.
            parameters = {name: parameter.data for name, parameter in whole.named_parameters()}
            set_model_state_dict(self.model, parameters, options=StateDictOptions(full_state_dict=True, strict=False))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save_checkpoint(self, model, trial) -> None:
        """Trainer's, by way of a staging folder: the checkpoint is there as a whole or not at all.

        Raises:
            RunError: on every rank, when a file cannot be written on any of them.
        """
        output_dir = Path(self.args.output_dir)
        staging = output_dir / checkpoints.STAGING_FOLDER
        checkpoint = output_dir / f"checkpoint-{self.state.global_step}"
        self.store_flos()
        try:
            self.write(lambda: _make_empty(staging), main_only=True)
            self.write(lambda: self._write_state(staging))
            self.write(lambda: checkpoints.commit(staging, checkpoint), main_only=True)
        except RunError:
            if self.is_world_process_zero():
                shutil.rmtree(staging, ignore_errors=True)  # makes room
            raise
        self._find_best()
        if self.is_world_process_zero():
            keep = {checkpoint, Path(self.state.best_model_checkpoint or checkpoint)}
            checkpoints.rotate(output_dir, self.args.save_total_limit, keep)

    def _write_state(self, folder: Path) -> None:
        if not folder.is_dir():
            raise RunError(
                f"{folder} is not there on rank {self.args.process_index}: training.output_dir must lie on "
                "a file system that all machines share"
            )
        self.save_model(str(folder), _internal_call=True)
        self._save_optimizer_and_scheduler(str(folder))
        if self.is_world_process_zero():  # FSDP's own copy of the weights in model.safetensors
            (folder / f"{FSDP_MODEL_NAME}.bin").unlink(missing_ok=True)
        self._save_scaler(str(folder))
        self._save_rng_state(str(folder))
        if carried := self.task.state_dict():
            save_file(carried, folder / CARRIED_FILE.format(rank=self.args.process_index))
        if self.is_world_process_zero():
            for callback in (*self.callback_handler.callbacks, self.control):
                if isinstance(callback, ExportableState):
                    self.state.stateful_callbacks[type(callback).__name__] = callback.state()
            self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
            shutil.copy(Path(self.args.output_dir, checkpoints.CONFIG_FILE), folder)
            state = {"data": self.loader.state_dict(), "skipped_steps": self.skipped_steps, "revision": self.revision}
            (folder / STATE_FILE).write_text(json.dumps(state))

    def _load_carried(self, checkpoint: Path) -> None:
        """Raises RunError where the checkpoint is that of another number of processes."""
        files = list(checkpoint.glob(CARRIED_FILE.format(rank="*")))
        if files and len(files) != self.args.world_size:
            raise RunError(
                f"{checkpoint} holds the states of {len(files)} processes, each with a text of its own, and this run "
                f"has {self.args.world_size}; go on with as many"
            )
        if files:
            file = checkpoint / CARRIED_FILE.format(rank=self.args.process_index)
            state = load_file(file)  # by way of the CPU, as safetensors knows no "cpu:0"
            self.task.load_state_dict({name: tensor.to(self.args.device) for name, tensor in state.items()})

    def write(self, action: Callable[[], Any], main_only: bool = False) -> None:
        """Writes files on every rank, or on the main one alone, and waits for all.

        Raises:
            RunError: on every rank, when it fails on any of them; names path and space.
        """
        problem = None
        if self.is_world_process_zero() or not main_only:
            try:
                action()
            except RunError as error:
                problem = str(error)
            except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have errors of their own
                problem = checkpoints.explain_storage(Path(self.args.output_dir), error)
        problems = [each for each in gather_object([problem]) if each]
        if problems:
            raise RunError(problems[0])

    def _find_best(self) -> None:
        best = Path(self.args.output_dir, f"checkpoint-{self.state.best_global_step}")
        self.state.best_model_checkpoint = str(best) if self.state.best_global_step and best.is_dir() else None

    def _load_best_model(self) -> None:
        if self.is_stopped:
            return
        best = Path(self.state.best_model_checkpoint)
        if problem := checkpoints.damage(best):
            raise RunError(
                f"{best}, the best checkpoint, is damaged: {problem}; training.load_best_model_at_end=false with "
                "--accept-changes takes the last one instead"
            )
        if self.is_fsdp_enabled:
            self._load_from_checkpoint(str(best))
        else:
            super()._load_best_model()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        # Arguments in a binary form that can hold the Hub token, and that nothing reads:
        # https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/trainer.py
        if self.args.should_save:
            Path(output_dir or self.args.output_dir, TRAINING_ARGS_NAME).unlink(missing_ok=True)


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
