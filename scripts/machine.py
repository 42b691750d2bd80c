"""What the benchmarks say of the machine: its name, and its rate of matrix products.

Needs nothing but torch and transformers.
"""

import os
import platform
import re
import time
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
