"""The process in which a command runs: what it imports, and where its log lines go."""

import gc
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipeline.progress import LogHandler, is_main, is_shown

if TYPE_CHECKING:
    from accelerate import PartialState


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import torch and what is built on it in less time, where they are not imported yet."""
    if "torch" in sys.modules:
        yield
        return
    # Large tensors on the CPU in large pages: a matrix whose rows are 4 kB long else needs a page for each of them.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # For each shape of a matrix product in bfloat16 oneDNN compiles a kernel, in a third of a millisecond. It and torch
    # keep a thousand each, half a gigabyte that also fragments the heap, where a training step needs about fifty.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "192")
    os.environ.setdefault("LRU_CACHE_CAPACITY", "16")  # torch's, https://github.com/intel/ideep
    if not is_shown():  # these bars, unlike those of huggingface_hub, are drawn in log files too
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    gc.disable()  # what imports make stays, and looking through it again and again takes time
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def show_logs(level: int = logging.WARNING) -> None:
    """Write log lines and warnings, ours and those of libraries, above the progress bars.

    Args:
        level: of the lines of ours that the main process writes; the others write errors.
    """
    from huggingface_hub import utils as hub
    from transformers.utils import logging as transformers_logging

    logging.basicConfig(format="%(message)s", handlers=[LogHandler()])
    logging.getLogger("pipeline").setLevel(level if is_main() else logging.ERROR)
    for library in ("transformers", "datasets", "huggingface_hub"):  # which write by handlers of their own
        logging.getLogger(library).handlers.clear()
        logging.getLogger(library).propagate = True
    logging.captureWarnings(True)
    downloads_are_shown = not hub.are_progress_bars_disabled()
    transformers_logging.disable_progress_bar()  # of loading and saving, and those of downloads with them
    if downloads_are_shown:
        hub.enable_progress_bars()


def join_processes() -> "PartialState":
    """Join the processes that a launcher started, before the first use of accelerate."""
    from accelerate import PartialState

    from pipeline.training.ranks import must_join_on_cpu

    return PartialState(cpu=must_join_on_cpu())
