"""The training batches of a config."""

from functools import partial

from accelerate import PartialState
from transformers import Seq2SeqTrainingArguments

from pipeline.config import Config
from pipeline.data.augmentation import Augmentation
from pipeline.data.batch_loader import BatchLoader
from pipeline.data.batch_stream import BatchStream
from pipeline.data.hub_reading import retry_seconds
from pipeline.data.splits import Rows
from pipeline.errors import ConfigError
from pipeline.tasks.base import Task


def build_loader(config: Config, args: Seq2SeqTrainingArguments, task: Task, rows: Rows) -> BatchLoader:
    """Make the loader of this rank's training batches.

    Args:
        rows: of the training split, as they were read.

    Raises:
        ConfigError: for augmentation of a task without a source to change.
    """
    state = PartialState()
    make_batches = task.make_batches(args.per_device_train_batch_size, state.num_processes)
    augment = None
    if any(config.augmentation.model_dump().values()):
        if task.tokenizer is None or make_batches is not None:
            raise ConfigError(f"augmentation: {config.task} has no source to change; leave it out")
        augment = Augmentation(config.augmentation, task.tokenizer, config.data.max_source_length)
    stream = BatchStream(
        task.to_samples(rows),
        partial(task.encode, limits=config.data),
        task.lengths,
        batch_rows=args.per_device_train_batch_size,
        batch_tokens=config.data.batch_tokens,
        packing=config.data.packing,
        window=config.data.shuffle_window,
        make_batches=make_batches,
        augment=augment,
        max_bad_rows=config.data.max_bad_rows if config.data.on_bad_row == "skip" else 0,
        patience=retry_seconds(config.data),
        seed=args.seed if args.data_seed is None else args.data_seed,
        rank=state.process_index,
        world_size=state.num_processes,
    )
    return BatchLoader(
        stream,
        task.pack if config.data.packing else task.collate,
        num_workers=args.dataloader_num_workers,
        prefetch_factor=args.dataloader_prefetch_factor or 1,
        timeout=config.data.worker_timeout,
        pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
    )
