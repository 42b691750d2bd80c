"""How much memory there is, and how much something takes."""

import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

# What a container may take, in bytes, and where its use is told without the page cache, which gives way:
# https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files, and version 1
CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), "anon"),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), "total_rss"),
)
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def available_memory(device: torch.device) -> int:
    """Return the bytes that this process can still take on a device."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    available = psutil.virtual_memory().available
    for limit, name in CGROUPS:
        if (bound := _read_limit(limit)) is not None:
            used = re.search(rf"^{name} (\d+)$", limit.with_name("memory.stat").read_text(), re.MULTILINE)
            available = min(available, max(0, bound - int(used[1] if used else 0)))
    return available


def total_memory(device: torch.device) -> int:
    """Return the bytes that a device has, or that this process may take of them."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    bounds = [psutil.virtual_memory().total, resource.getrlimit(resource.RLIMIT_AS)[0]]
    bounds += [bound for limit, _ in CGROUPS if (bound := _read_limit(limit)) is not None]
    return min(bound for bound in bounds if bound > 0)  # RLIM_INFINITY is negative


def _read_limit(path: Path) -> int | None:
    """Return the bytes in a file of a cgroup; None where it has no limit."""
    text = path.read_text().strip() if path.is_file() else ""
    return int(text) if text.isdecimal() else None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], int]]:
    """Give a function that reads the peak, in bytes, since the block began, less what was in use then.

    On a CPU 0 where the system does not tell, as only Linux does.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield lambda: torch.cuda.max_memory_allocated(device) - before
    elif CLEAR.is_file():
        CLEAR.write_text("5")  # makes what is resident now the peak
        before = _resident("VmRSS")
        yield lambda: max(0, _resident("VmHWM") - before)
    else:
        yield lambda: 0


def _resident(name: str) -> int:
    line = re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text())
    return 0 if line is None else int(line[1]) * 1024
