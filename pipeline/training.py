"""Seq2SeqTrainer with a loader that knows its position, and with evaluation that counts every sample once."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import GenerationConfig, Seq2SeqTrainer, TrainerCallback, TrainerControl
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_callback import DefaultFlowCallback

from pipeline.batching import BatchLoader
from pipeline.evaluation import Evaluation, Prediction, evaluate
from pipeline.metrics import Metric
from pipeline.tasks.task import Feature, Task

POSITION_FILE = "data_position.json"


class PassEnd(TrainerCallback):
    """Lets `eval_strategy: epoch` and the like act where a pass over the data ends; Trainer sees an endless one."""

    def __init__(self, loader: BatchLoader):
        self.loader = loader

    def on_train_begin(self, args, state, control, **kwargs):
        self.number = self.loader.position.number

    def on_step_end(self, args, state, control, **kwargs):
        if self.loader.position.number > self.number:
            self.number = self.loader.position.number
            return DefaultFlowCallback().on_epoch_end(args, state, control, **kwargs)


class TeacherForcingTrainer(Seq2SeqTrainer):
    """Trains any task; what it knows of one is the `Task` protocol.

    Args:
        task: makes batches of rows, and losses and predictions of outputs.
        loader: the training batches.
        validation: features to evaluate on while training.
        generation: how to generate predictions while training; None evaluates losses alone.
        metrics: scores of these predictions.
        show: how many of them to print.
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
        callbacks: Sequence[TrainerCallback] = (),
        **kwargs,
    ):
        self.task, self.loader, self.validation = task, loader, validation
        self.generation, self.metrics, self.show = generation, metrics, show
        super().__init__(
            train_dataset=loader.stream,
            eval_dataset=validation or None,
            processing_class=task.tokenizer,
            callbacks=[*callbacks, PassEnd(loader)],
            **kwargs,
        )
        self._counts = torch.zeros(2, device=self.args.device)  # target tokens since the last log, and right ones

    def get_train_dataloader(self) -> BatchLoader:
        """The loader as it is: it deals out batches to the ranks itself, and Trainer moves them to the device."""
        return self.loader

    def train(self, resume_from_checkpoint: str | None = None, **kwargs):
        """As `Trainer.train`, going on at the very row where the checkpoint was written."""
        if resume_from_checkpoint:
            self.loader.load_state_dict(json.loads(Path(resume_from_checkpoint, POSITION_FILE).read_text()))
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        with torch.no_grad():
            self._counts += torch.stack([count.sum() for count in self.task.count(outputs, inputs)])
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            items, correct = self.accelerator.reduce(self._counts).tolist()
            logs["token_accuracy"] = correct / max(items, 1)
            self._counts.zero_()
        self.state.epoch = self.loader.position.epoch
        if self.loader.position.left_out:
            logs["rows_left_out"] = self.loader.position.left_out
        super().log(logs, start_time)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval", **gen_kwargs):
        """Scores the validation features; see `pipeline.evaluation.evaluate`."""
        result = self.score(self.validation, self.generation)
        numbers = {f"{metric_key_prefix}_{name}": value for name, value in result.numbers.items()}
        self.log(dict(numbers))
        if self.is_world_process_zero() and self.generation is not None:
            for prediction in result.predictions[: self.show]:
                tqdm.write(describe(prediction))
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, numbers)
        return numbers

    def score(self, features: Sequence[Feature], generation: GenerationConfig | None) -> Evaluation:
        return evaluate(
            self.model,
            self.task,
            features,
            batch_size=self.args.per_device_eval_batch_size,
            generation=generation,
            metrics=self.metrics,
        )

    def _save_checkpoint(self, model, trial) -> None:
        # Before Trainer writes: it deletes older checkpoints last, and must find this one complete.
        if self.is_world_process_zero():
            folder = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / POSITION_FILE).write_text(json.dumps(self.loader.state_dict()))
        super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        # Arguments in a binary form that can hold the Hub token, and that nothing reads:
        # https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/trainer.py
        if self.args.should_save:
            Path(output_dir or self.args.output_dir, TRAINING_ARGS_NAME).unlink(missing_ok=True)


def describe(prediction: Prediction) -> str:
    """One sample on three lines, marked right or wrong."""
    mark = "right" if prediction.is_right else "wrong"
    return (
        f"  source     {prediction.source}\n  reference  {prediction.reference}\n  {mark:<9}  {prediction.prediction}\n"
    )
