"""What the benchmarks say of the machine: its name, what its processor can do and does, its rate of matrix products.

Needs nothing but torch and transformers.
"""

import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import torch
import transformers

FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")  # of /proc/cpuinfo
SETTINGS = ("OMP_", "MKL_", "KMP_", "ONEDNN_", "DNNL_", "ATEN_", "GOMP_", "THP_", "LD_PRELOAD")  # variables begin so
LIBRARIES = {"MKL": r"Math Kernel Library Version (\S+)", "oneDNN": r"MKL-DNN (v\S+)"}  # of matrix products
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
PRODUCT = "import torch; a = torch.randn(256, 256, dtype=torch.bfloat16); a @ a; a.float() @ a.float()"


def describe_machine(device: str) -> dict[str, str | int]:
    """Name what the figures were measured on."""
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    name = re.search(r"model name\s*:\s*(.+)", cpu)
    flags = re.search(r"flags\s*:\s*(.+)", cpu)
    described: dict[str, str | int] = {
        "processor": name[1] if name else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if device == "cpu":
        build = torch.__config__.show()
        described |= {
            "processor can": " ".join(flag for flag in FLAGS if flags and flag in flags[1].split()) or "unknown",
            "torch uses": torch.backends.cpu.get_cpu_capability(),
            "torch threads": torch.get_num_threads(),
            **{name: match[1] for name, pattern in LIBRARIES.items() if (match := re.search(pattern, build))},
            "environment": " ".join(f"{k}={v}" for k, v in sorted(os.environ.items()) if k.startswith(SETTINGS)),
        }
    return described


def used_instructions() -> dict[str, str]:
    """Return what oneDNN takes for a product in bf16 here, by its own word, in a process that logs it.

    The log's form: https://uxlfoundation.github.io/oneDNN/dev_guide_verbose.html
    """
    environment = {**os.environ, "ONEDNN_VERBOSE": "1"}
    done = subprocess.run([sys.executable, "-c", PRODUCT], capture_output=True, text=True, env=environment)
    isa = re.search(r"info,cpu,isa:(.+)", done.stdout)
    kernel = re.search(r"exec,cpu,matmul,([^,]+),", done.stdout)
    return {
        "oneDNN sees": isa[1] if isa else "unknown",
        "oneDNN's bf16 product": kernel[1] if kernel else "not asked by torch",
    }


def matrix_product_rate(device: str, dtype: str, size: int = 2048, seconds: float = 2.0) -> float:
    """Measure operations a second in the best of many products of square matrices."""
    size *= 4 if device == "cuda" else 1
    left, right = torch.randn(2, size, size, device=device, dtype=DTYPES[dtype])
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
