"""The trainer: how a batch becomes a loss, what is logged and evaluated, and what a checkpoint holds.

One step, from top to bottom of `TeacherForcingTrainer`: the items of all micro-batches on all ranks are counted
(`label_batch`), each micro-batch gives a sum of losses divided by that number (`compute_loss`), the step guard looks at
the gradients (`before_optimizer_step`), and at the end of the step come logs (`log`), evaluation (`evaluate`) and the
checkpoint (`save_checkpoint`).
"""

import logging
import time
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn
from tqdm import tqdm
from transformers import GenerationConfig, ProgressCallback, TrainerCallback, TrainerControl
from transformers.trainer_callback import DefaultFlowCallback

from pipeline.data.batch_loader import BatchLoader
from pipeline.data.filters import READ, RULES, count_taken
from pipeline.data.lanes import CorpusProgress, Progress, merge_states, positions_of
from pipeline.errors import DataError, RunError, Stopped
from pipeline.inference.evaluation import Evaluation, evaluate_features
from pipeline.inference.metrics import Metric
from pipeline.manifest import damage
from pipeline.progress import progress_bar
from pipeline.tasks.base import Batch, Feature, Task
from pipeline.training import checkpoints
from pipeline.training.averaging import (
    MovingAverage,
    exponential_decay,
    find_begin,
    mean_of_checkpoints,
    uniform_decay,
)
from pipeline.training.changes import score_turns
from pipeline.training.checkpoints import NEW_RUN, RunState
from pipeline.training.out_of_memory import (
    evaluation_changes,
    lost_worker_explained,
    out_of_memory_explained,
    training_changes,
)
from pipeline.training.step_guard import StepGuard, explain_divergence, has_finite_weights
from pipeline.training.trainer_internals import TrainerInternals

OF_CORPORA = "corpora/"  # in front of what is logged of a mixture
PATIENCE = "training.average_patience"
LAST_BATCHES = 4  # of the training, one of which must have a finite loss at its end

logger = logging.getLogger(__name__)


class TeacherForcingTrainer(TrainerInternals):
    """Trains any task; what it knows of one are the methods of `Task`.

    Args:
        task: makes batches of rows, and losses and predictions of outputs.
        loader: the training batches.
        validation: features to evaluate on while training.
        generation: how a model that generates makes its predictions while training.
        metrics: scores of predictions; without any, only losses are evaluated.
        show: how many predictions to print at an evaluation.
        start: where the run begins or goes on; what it says of the data and of changes is kept in the checkpoints.
        ema_decay: of the average of the weights that is evaluated and saved; None for none of this kind.
        average_patience: evaluations without a better score before all further weights are averaged; likewise.
        average_best: how many of the best checkpoints to keep, for `load_average`.

    Attributes:
        average: of the weights, while they are trained. Behind that the model itself has what is to be used.
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
        start: RunState = NEW_RUN,
        ema_decay: float | None = None,
        average_patience: int | None = None,
        average_best: int = 0,
        callbacks: Sequence[TrainerCallback] = (),
        **kwargs,
    ):
        self.task, self.loader, self.validation = task, loader, validation
        self.generation, self.metrics, self.show, self.start = generation, metrics, show, start
        self.average_best = average_best
        super().__init__(
            train_dataset=loader.stream,
            eval_dataset=validation or None,
            processing_class=task.tokenizer,
            callbacks=callbacks,
            **kwargs,
        )
        if not self.args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(TrainingBar())
        self.add_callback(PassEnd(self))
        self.guard = StepGuard(None if self.is_deepspeed_enabled else self.go_back_to, self.args.device)
        self.add_callback(self.guard)
        self.average: MovingAverage | None = None
        if ema_decay is not None or average_patience is not None:
            key = "training.ema_decay" if average_patience is None else PATIENCE
            self.average = MovingAverage(self.model, key)
            self.add_callback(AveragedStep(self, ema_decay, average_patience))
        self._counts = torch.zeros(2, device=self.args.device)  # items since the last log, and those predicted right
        self._divergence = torch.zeros((), device=self.args.device)  # of R-Drop's two passes, since the last log
        self.has_r_drop = getattr(self.plain_model.config, "r_drop", 0) > 0
        self.progress = Progress()  # of all lanes, behind the last step
        self._last_batches: deque[Batch] = deque(maxlen=LAST_BATCHES)
        self._last_log = 0.0  # on the clock, put forward by what evaluations took

    def train(self, resume_from_checkpoint: str | None = None, **kwargs):
        """Train as `Trainer.train` does, and go on at the very row where the checkpoint was written.

        Raises:
            Stopped: after SIGTERM or SIGINT, when the step in hand is finished and saved.
            RunError: when loss, gradients or weights stay without finite values, a checkpoint cannot be written, a
                loader worker hangs or is killed, or there is too little memory.
        """
        if resume_from_checkpoint:
            if self.start.data is not None:
                self.loader.lanes.load_state_dict(self.start.data)
                positions = positions_of(self.start.data)
                self.progress = Progress.of_positions(positions, positions, self.loader.lanes.corpora)
            self.guard.skipped_steps = self.start.skipped_steps
            self._take_up_carried(Path(resume_from_checkpoint))
        self._last_log = time.perf_counter()
        changes = training_changes(self.args, self.loader.stream.batch_tokens)
        output_dir = Path(self.args.output_dir)
        with self.guard.stop_request, out_of_memory_explained(output_dir, *changes), lost_worker_explained(output_dir):
            try:
                output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
            finally:
                self._end_progress_bar()
        self._take_average()
        self.guard.refuse_divergence(self.model, output_dir, self.state.global_step)
        if not self.validation:  # whose scores else tell
            self._refuse_divergence_by_loss(output_dir)
        if self.guard.is_stopped:
            raise Stopped(f"stopped and saved after step {self.state.global_step}; the same command goes on from there")
        return output

    def _take_average(self) -> None:
        """Give the model what is to be used of a training that is over; the best checkpoint has an average already."""
        is_best_loaded = self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None
        if self.average is not None and not self.guard.is_stopped and not is_best_loaded:
            self.average.put_into_model()
        self.average = None

    def _refuse_divergence_by_loss(self, output_dir: Path) -> None:
        """Refuse a model that gives none of the last batches a finite loss, though its weights are finite.

        Raises:
            RunError: on every rank.
        """
        model = self.unsharded_model()
        was_training = model.training
        model.eval()
        with torch.no_grad(), self.accelerator.autocast():
            losses = [model(**self.task.with_state(batch)).loss for batch in self._last_batches]
        model.train(was_training)
        num_finite = torch.tensor(sum(bool(loss.isfinite()) for loss in losses), device=self.args.device)
        if losses and not self.accelerator.reduce(num_finite):
            raise RunError(explain_divergence("no loss of the last batches is finite", output_dir))

    def _end_progress_bar(self) -> None:
        """End the line of a bar that an error left behind, so that the error stands on its own line."""
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, ProgressCallback) and callback.training_bar is not None:
                callback.on_train_end(self.args, self.state, self.control)

    def get_train_dataloader(self) -> BatchLoader:
        """Return the loader as it is: it deals batches out to the ranks itself; Trainer moves them to the device."""
        return self.loader

    # The loss

    def label_batch(self, batch: Batch) -> Batch:
        return self.task.label_batch(batch)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the summed loss of a micro-batch, divided by the items of the whole step on all ranks.

        The micro-batches of a step then add up to the mean over its items. A mean of the micro-batches' own means would
        weigh the items of a short one more than those of a long one.
        """
        self._last_batches.append(inputs)
        arguments = self.task.with_state(inputs)
        if self.compute_loss_func is not None and hasattr(self.model, "prepare_decoder_input_ids_from_labels"):
            # Trainer gives the labels to the function only, and the model makes its decoder's inputs of labels.
            read = self.model.prepare_decoder_input_ids_from_labels(labels=inputs["labels"])
            arguments.setdefault("decoder_input_ids", read)  # a task may have put the target's language there
        loss, outputs = super().compute_loss(model, arguments, True, num_items_in_batch)
        self.task.keep_state(outputs)
        with torch.no_grad():
            self._counts += torch.stack([count.sum() for count in self.task.count_items(outputs, inputs)])
            if self.has_r_drop:
                self._divergence += outputs["divergence"].nan_to_num(0, 0, 0)  # as the loss of a step that is skipped
            self.guard.add_loss(loss)
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Return 0 for a loss that is not finite: Trainer sums what it logs, and one NaN would be in all later sums."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        return torch.where(loss.isfinite(), loss, torch.zeros_like(loss))

    def before_optimizer_step(self, model: nn.Module, grad_norm: float) -> None:
        # fp16 finds its loss scale by gradients that overflow, and its scaler skips those steps itself.
        norm = 0.0 if self.accelerator.scaler is not None else grad_norm
        lanes = self.loader.lanes
        facts = self.guard.check_step(model, norm, self.state.global_step + 1, lanes.progress().as_numbers())
        self.progress = Progress.of_all(facts.tolist(), lanes.corpora)
        self._check_bad_rows()

    def _check_bad_rows(self) -> None:
        bound = self.loader.stream.max_bad_rows
        passes = {f" over data.mix.{name}": corpus.bad_in_pass for name, corpus in self.progress.corpora.items()}
        for which, num_bad in (passes or {"": self.progress.skipped_in_pass}).items():
            if bound is not None and num_bad > bound:
                raise DataError(f"{num_bad} bad rows in one pass{which}, where data.max_bad_rows={bound}")

    # Logs and evaluation

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with accuracy, speed and what was skipped; the mean loss is that of the steps that were not skipped."""
        logs = dict(logs)
        if "loss" in logs:
            items, correct = self.accelerator.reduce(self._counts).tolist()
            if self.task.accuracy is not None:
                logs[self.task.accuracy] = correct / max(items, 1)
            seconds = time.perf_counter() - self._last_log
            logs["items_per_second"] = items / seconds
            self._last_log += seconds
            self._counts.zero_()
            if self.has_r_drop:
                logs["kl_divergence"] = self.accelerator.reduce(self._divergence).item() / max(items, 1)
                self._divergence.zero_()
            logs["loss"] = self.guard.take_mean_loss(logs["loss"])
            logs |= {
                f"{OF_CORPORA}{corpus}/{name}": number
                for corpus, numbers in self.corpora.items()
                for name, number in numbers.items()
            }
        self.state.epoch = self.progress.epoch
        left_out = self.skipped | {"filtered_rows": sum(map(count_taken, self.progress.filtered.values()))}
        super().log(logs | {name: count for name, count in left_out.items() if count}, start_time)

    @property
    def skipped(self) -> dict[str, int]:
        """What was left out so far: bad rows, over all passes, and steps that were not finite."""
        return {"skipped_rows": self.progress.skipped_rows, "skipped_steps": self.guard.skipped_steps}

    @property
    def corpora(self) -> dict[str, dict[str, float]]:
        """What was trained on so far of each corpus of a mixture: rows, tokens on all sides, passes and bad rows."""
        return {
            name: {
                "rows": corpus.rows,
                "tokens": corpus.tokens,
                "passes": self._count_passes(name, corpus),
                "bad_rows": corpus.bad_rows,
            }
            for name, corpus in self.progress.corpora.items()
        }

    def _count_passes(self, name: str, corpus: CorpusProgress) -> float:
        """Return the passes over a corpus, with the fraction of the present one where its size is known."""
        size = self.loader.stream.sizes[name]
        num_filtered = count_taken(self.progress.filtered.get(name, {}))
        return corpus.pass_index if size is None else round((corpus.rows + corpus.bad_rows + num_filtered) / size, 4)

    @property
    def filtered(self) -> dict[str, dict[str, int]]:
        """Rows that were read of each corpus with filters, and how many of them each rule took, over all passes."""
        asked = {name: {*filters.values} for name, filters in self.loader.stream.filters.items()}
        return {
            name or "train": {READ: counts[READ]}
            | {rule: counts.get(rule, 0) for rule in RULES if rule in asked.get(name, set()) | counts.keys()}
            for name, counts in self.progress.filtered.items()
        }

    @property
    def used(self) -> dict[str, dict[str, Any]]:
        """What the scores and the card say of the training rows, as far as there is anything to say."""
        return {name: counts for name, counts in (("corpora", self.corpora), ("filters", self.filtered)) if counts}

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval", **gen_kwargs):
        """Score the validation features; see `pipeline.inference.evaluation.evaluate_features`."""
        begin = time.perf_counter()
        result = self.score(self.validation, self.generation)
        self._last_log += time.perf_counter() - begin  # the speed is that of the training only
        numbers = {f"{metric_key_prefix}_{name}": value for name, value in result.numbers.items()}
        self.log(numbers)
        if self.is_world_process_zero() and self.metrics:
            for prediction in result.predictions[: self.show]:
                tqdm.write(str(prediction))
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, numbers)
        return numbers

    def score(self, features: Sequence[Feature], generation: GenerationConfig | None) -> Evaluation:
        """Evaluate the model as it is now, or the average; every rank must call it, and gets the whole result.

        Raises:
            RunError: when there is too little memory.
        """
        changes = evaluation_changes(self.args)
        with out_of_memory_explained(Path(self.args.output_dir), changes), self._averaged():
            return evaluate_features(
                self.unsharded_model(),
                self.task,
                features,
                batch_size=self.args.per_device_eval_batch_size,
                generation=generation,
                metrics=self.metrics,
                description=None if self.args.disable_tqdm else "evaluating",
            )

    def _averaged(self) -> AbstractContextManager[dict[str, torch.Tensor] | None]:
        """Let the model have the average for a while, where there is one; yields the weights that are trained then."""
        return nullcontext() if self.average is None else self.average.in_model()

    # Checkpoints

    def save_checkpoint(self) -> None:
        """Write the checkpoint of this step, and remove older ones; weights that are not finite are not worth one.

        Raises:
            RunError: on every rank, when a file cannot be written on any of them.
        """
        output_dir = Path(self.args.output_dir)
        if not has_finite_weights(self.model):
            logger.warning("step %d: the weights are not finite; no checkpoint is written", self.state.global_step)
            return
        self.store_flos()
        data = merge_states(gather_object([self.loader.lanes.state_dict()]))
        checkpoint = checkpoints.write_checkpoint(
            output_dir, self.state.global_step, lambda folder: self._write_files(folder, data)
        )
        self.find_best_checkpoint()
        if self.is_world_process_zero():
            best = self.list_best_checkpoints()[: self.average_best] if self.average_best else []
            keep = {checkpoint, Path(self.state.best_model_checkpoint or checkpoint), *best}
            checkpoints.rotate(output_dir, self.args.save_total_limit, keep)

    def _write_files(self, folder: Path, data: dict[str, Any]) -> None:
        with self._averaged() as raw_weights:
            self.save_training_state(folder)
            if raw_weights is not None and self.is_world_process_zero():
                checkpoints.save_raw_weights(folder, raw_weights)
        checkpoints.save_carried(folder, self.args.process_index, self.task.state_dict())
        if self.is_world_process_zero():
            self.save_trainer_state(folder)
            state = replace(self.start, data=data, skipped_steps=self.guard.skipped_steps)
            checkpoints.save_run_state(folder, state)

    def go_back_to(self, checkpoint: Path) -> None:
        """Put all but the position in the data back to a checkpoint, in the middle of a training."""
        self.load_training_state(checkpoint)
        self._take_up_carried(checkpoint)

    def load_raw_weights(self, checkpoint: Path) -> None:
        """Take averages and weights apart, which are the same in a checkpoint of a training without averages.

        Raises:
            RunError: where they differ, and the weights are sharded.
        """
        if self.average is not None:
            self.average.begin_anew()
        raw_weights = checkpoints.load_raw_weights(checkpoint)
        if raw_weights is not None:
            if self.is_fsdp_enabled:
                raise RunError(f"{checkpoint} is of a run with averaged weights, which cannot go on with FSDP")
            self.model.load_state_dict(raw_weights, strict=False)  # tied weights are there by one name

    def _take_up_carried(self, checkpoint: Path) -> None:
        carried = checkpoints.load_carried(checkpoint, self.args.process_index, self.args.world_size)
        if carried:
            self.task.load_state_dict({name: tensor.to(self.args.device) for name, tensor in carried.items()})

    def should_load_best_model(self) -> bool:
        """Return False where the training was stopped, as it goes on from its last state.

        Raises:
            RunError: when the best checkpoint is damaged.
        """
        if self.guard.is_stopped:
            return False
        best = Path(self.state.best_model_checkpoint)
        if problem := damage(best):
            raise RunError(
                f"{best}, the best checkpoint, is damaged: {problem}; training.load_best_model_at_end=false with "
                "--accept-changes takes the last one instead"
            )
        return True

    def list_best_checkpoints(self) -> list[Path]:
        """List the checkpoints of this run by the score that is watched, the best first."""
        return checkpoints.find_best(
            Path(self.args.output_dir),
            self.state.log_history,
            f"eval_{self.args.metric_for_best_model}",
            bool(self.args.greater_is_better),
            score_turns(self.start.phases),
        )

    def find_begin_of_average(self, patience: int) -> int | None:
        """Return the step from which on all weights are averaged; evaluations before a run asked for that count not."""
        since = max((phase.first_step for phase in self.start.phases if PATIENCE in phase.changes), default=0)
        return find_begin(
            [line for line in self.state.log_history if line["step"] >= since],
            f"eval_{self.args.metric_for_best_model}",
            bool(self.args.greater_is_better),
            patience,
            score_turns(self.start.phases),
        )

    def load_average(self, key: str, count: int) -> None:
        """Put the mean of several checkpoints' weights in the place of the last ones.

        Args:
            key: `average_best` for the best checkpoints, `average_checkpoints` for the newest.

        Raises:
            RunError: when there are fewer, or one is damaged.
        """
        output_dir = Path(self.args.output_dir)
        is_best = key == "average_best"
        found = self.list_best_checkpoints() if is_best else checkpoints.list_checkpoints(output_dir)
        if len(found) < count:
            raise RunError(
                f"evaluation.{key}: {output_dir} has {len(found)} of {count}{' with a score' if is_best else ''}; save "
                "more often, or lower it with --accept-changes"
            )
        logger.info("the mean of %s", ", ".join(path.name for path in found[:count]))
        means = mean_of_checkpoints(found[:count])
        self.model.load_state_dict(means, strict=False)  # tied weights are there by one name


class AveragedStep(TrainerCallback):
    """Takes the weights after each step into their average, but for steps that do not count.

    Args:
        ema_decay, patience: as `TeacherForcingTrainer` has them, one of the two.
    """

    def __init__(self, trainer: TeacherForcingTrainer, ema_decay: float | None, patience: int | None):
        self.trainer, self.ema_decay, self.patience = trainer, ema_decay, patience
        self.begin: int | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        if self.patience is not None:
            self.begin = self.trainer.find_begin_of_average(self.patience)

    def on_evaluate(self, args, state, control, **kwargs):
        self.on_train_begin(args, state, control)

    def on_optimizer_step(self, args, state, control, **kwargs):
        is_skipped = self.trainer.guard.skipped_in_a_row or self.trainer.accelerator.optimizer_step_was_skipped
        if not is_skipped and self.trainer.average is not None:
            step = state.global_step + 1  # Trainer counts it later
            self.trainer.average.update(
                uniform_decay(step, self.begin) if self.ema_decay is None else exponential_decay(step, self.ema_decay)
            )


class TrainingBar(ProgressCallback):
    """Transformers' log lines, and its bar where bars are shown: the original writes one into log files as well.

    It also counts steps from those that an earlier run made, so that speed and time left are those of this one.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.training_bar = progress_bar("training", "steps", state.max_steps, state.global_step)
        self.current_step = state.global_step

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Print a line without the counts of corpora, which TensorBoard shows."""
        shown = {name: value for name, value in (logs or {}).items() if not name.startswith(OF_CORPORA)}
        super().on_log(args, state, control, logs=shown, **kwargs)


class PassEnd(TrainerCallback):
    """Lets `eval_strategy: epoch` and the like act where a pass over the data ends; Trainer sees an endless one."""

    def __init__(self, trainer: TeacherForcingTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.pass_index = self.trainer.progress.pass_index

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainer.progress.pass_index > self.pass_index:
            self.pass_index = self.trainer.progress.pass_index
            return DefaultFlowCallback().on_epoch_end(args, state, control, **kwargs)
