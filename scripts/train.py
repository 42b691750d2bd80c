"""Train the model that a config describes, from a clone."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipeline.cli import main

if __name__ == "__main__":
    sys.exit(main())
