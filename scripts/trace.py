"""Shows a pair on its way through a model, as a page and a picture: scripts/trace.py CHECKPOINT SOURCE TARGET"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run from a clone, whether installed or not

from transformers.utils import logging

from pipeline.errors import TeacherForcingError
from pipeline.inference.attention import trace
from pipeline.tasks.registry import load
from pipeline.tracing.page import write_page, write_picture


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="folder or Hub id of a trained encoder-decoder model of this project")
    parser.add_argument("source", type=text, help="text that the encoder reads")
    parser.add_argument("target", type=text, help="text that the decoder is to say, given to it token by token")
    parser.add_argument(
        "--output", type=Path, default=Path("trace.html"), help="the page; the picture goes beside it as .png"
    )
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    page = arguments.output
    picture = page.with_suffix(".png")
    try:
        if page == picture:
            raise ValueError(f"--output {page}: the picture takes this name; name a page, such as trace.html")
        model, task = load(arguments.checkpoint)
        result = trace(model, task, arguments.source, arguments.target)
        write_page(result, page)
        write_picture(result, picture)
    except (TeacherForcingError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"sum of {len(result.steps)} step losses   {result.summed_loss:.6f}")
    print(f"parallel loss x targets   {result.parallel_summed_loss:.6f}")
    print(f"the model by itself       {result.generated_text}")
    print(f"{page}\n{picture}")
    return 0


def text(argument: str) -> str:
    """Bytes that are no UTF-8 as U+FFFD, by which the task names them as bad."""
    return os.fsencode(argument).decode("utf-8", errors="replace")


if __name__ == "__main__":
    sys.exit(main())
