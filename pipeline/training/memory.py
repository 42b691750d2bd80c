"""How much memory there is, and how much something takes."""

import re
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
        if limit.is_file() and (bound := limit.read_text().strip()).isdecimal():
            used = re.search(rf"^{name} (\d+)$", limit.with_name("memory.stat").read_text(), re.MULTILINE)
            available = min(available, max(0, int(bound) - int(used[1] if used else 0)))
    return available


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
