"""What a kind of problem is, from row to score: `base.Task` is the contract, one file a task, `registry` names them.

Here may be: how rows become features and batches, how outputs become losses and predictions, the task's own section of
a config, what its card says, its pictures. Not here: a loop over batches, a file format, training.
"""
