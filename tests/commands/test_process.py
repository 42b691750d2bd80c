"""The process of a command."""

import os
import subprocess
import sys

from pipeline.commands.process import is_main
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


def test_only_the_first_of_several_processes_prints(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert is_main()
    monkeypatch.setenv("RANK", "1")
    assert not is_main()
