"""The process in which a command runs: what it imports, and which of several it is."""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import torch and what is built on it in less time, where they are not imported yet."""
    if "torch" in sys.modules:
        yield
        return
    # Large tensors on the CPU in large pages: a matrix whose rows are 4 kB long else needs a page for each of them.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    gc.disable()  # what imports make stays, and looking through it again and again takes time
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def is_main() -> bool:
    """Tell whether this is the process that prints, where a launcher started several."""
    return os.environ.get("RANK", "0") == "0"
