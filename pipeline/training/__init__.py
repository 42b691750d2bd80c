"""Training: how a batch becomes a step, and how a run survives what happens to it.

- `trainer.py`: the trainer; the loss and its items, logs, evaluation, what a checkpoint holds.
- `trainer_internals.py`: its base class, the only file that touches private names of transformers' Trainer.
- `step_guard.py`: steps without a finite loss or gradient, going back to a checkpoint, stopping on a signal.
- `out_of_memory.py`: what to change where memory ends a run.
- `checkpoints.py`: the only file that knows the format of a checkpoint.
- `averaging.py`: averages of weights, over the steps of a training and over checkpoints.
- `ranks.py`: an action that fails on all processes when it fails on one.
- `unsharded.py`: copies of a model that FSDP2 shards.
- `arguments.py`: the section `training` as transformers takes it, and what can be refused before anything starts.
- `schedules.py`: learning-rate schedules that transformers lacks.

No task, model or metric is named here: the trainer knows a task by the methods of `pipeline.tasks.base.Task`. What
happens before and after the training (the run folder's settings, scores, publishing) is in `pipeline/run.py`.
"""
