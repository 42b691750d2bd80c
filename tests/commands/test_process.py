"""The process of a command."""

import os
import subprocess
import sys

from tests.conftest import ROOT


def test_imports_are_quick():
    """Huge pages are asked for before torch is imported, and the garbage collector runs again afterwards."""
    code = "from pipeline.commands.process import quick_imports\nwith quick_imports():\n import torch\nimport gc, os\n"
    code += "print(os.environ['THP_MEM_ALLOC_ENABLE'], gc.isenabled())"
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, env=environment, text=True).split() == [
        "1",
        "True",
    ]


KERNELS = """
from pipeline.commands.process import quick_imports
with quick_imports():
    import torch
for rows in [1, *range(1, 301), 1]:
    torch.ops.mkldnn._linear_pointwise(torch.ones(rows, 8), torch.ones(8, 8), None, "none", [], "")
"""


def test_few_kernels_are_kept():
    """Else a training in bfloat16, each of whose batches has other shapes, needs more and more memory."""
    environment = {key: value for key, value in os.environ.items() if not key.endswith("CACHE_CAPACITY")}
    environment["ONEDNN_VERBOSE"] = "profile_create"
    log = subprocess.check_output([sys.executable, "-c", KERNELS], cwd=ROOT, env=environment, text=True)
    made = [line for line in log.splitlines() if "create:" in line and ("1x8:8x8" in line or "mb1ic8oc8" in line)]
    assert ["miss" in line for line in made] == [True, False, True]  # of one row: new, kept, given up


SHOW = """
import logging, os, warnings
from pipeline.commands.process import quick_imports, show_logs
with quick_imports():
    from huggingface_hub import utils as hub
    from transformers.utils import logging as transformers_logging
show_logs(logging.INFO)
logging.getLogger("pipeline.x").info("ours")
transformers_logging.get_logger("transformers.x").warning("theirs")
warnings.warn("both")
print(hub.are_progress_bars_disabled(), transformers_logging.is_progress_bar_enabled())
print(os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"])
"""


def test_all_lines_go_one_way():
    """Each is written once, and the bars of libraries are hidden where they would be written into a file."""
    done = subprocess.run([sys.executable, "-c", SHOW], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[:-1] == ["ours", "theirs"] and done.stderr.endswith(": UserWarning: both\n")
    assert done.stdout.splitlines() == ["False False", "1"]
