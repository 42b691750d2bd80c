"""What the benchmarks say of the machine: its name, its rate of matrix products, and the memory that something takes.

Needs nothing but torch and transformers.
"""

import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers


def describe_machine(device: str) -> dict[str, str | int]:
    """Name what the figures were measured on."""
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file() and (
        name := re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    ):
        processor = name[1]
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def matrix_product_rate(device: str, size: int = 2048, seconds: float = 2.0) -> float:
    """Measure operations a second in the best of many products of square matrices, in the type that training uses."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    size *= 4 if device == "cuda" else 1
    left, right = torch.randn(2, size, size, device=device, dtype=dtype)
    best = float("inf")
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        left @ right
        synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


def synchronize(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


@contextmanager
def peak_memory(device: str) -> Iterator[Callable[[], int]]:
    """Give a function that reads the peak, in bytes, since the block began, less what was in use then."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield lambda: torch.cuda.max_memory_allocated() - before
    else:
        Path("/proc/self/clear_refs").write_text("5")  # makes what is resident now the peak
        before = _resident("VmRSS")
        yield lambda: _resident("VmHWM") - before


def _resident(field: str) -> int:
    line = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert line is not None
    return int(line[1]) * 1024
