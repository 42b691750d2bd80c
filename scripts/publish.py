"""Publishes a trained model, or a checkpoint of a training: publish.py CHECKPOINT owner/name [--private]"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run from a clone, whether installed or not

from pipeline.config import HubConfig
from pipeline.errors import ConfigError
from pipeline.publishing import hub


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="folder of a trained model, or a checkpoint-N below one")
    parser.add_argument("name", help="owner/name of the repository, which is made if there is none")
    parser.add_argument("--private", action="store_true", help="seen by its owner alone, where it is made")
    arguments = parser.parse_args()
    settings = HubConfig(push=True, model_id=arguments.name, private=arguments.private)
    try:
        if not arguments.checkpoint.is_dir():
            raise ConfigError(f"{arguments.checkpoint}: no such folder")
        hub.prepare(settings)
        hub.publish(arguments.checkpoint, arguments.name, f"Upload of {arguments.checkpoint.name}", settings.patience)
    except hub.FAILURES as error:
        print(f"error: {hub.explain(error, arguments.name)}", file=sys.stderr)
        return 2
    print(f"{arguments.checkpoint} is published as {arguments.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
