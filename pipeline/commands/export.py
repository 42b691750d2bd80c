"""teacher-forcing export: a model in the form of another runtime."""

import logging
from argparse import Namespace

from pipeline.commands.arguments import Parser, count_or_all, name, path
from pipeline.commands.process import quick_imports
from pipeline.signals import interrupted_by_sigterm


def add_arguments(parser: Parser) -> None:
    parser.add_argument("checkpoint", type=path, help="folder of a trained model, or a checkpoint-N below one")
    parser.add_argument("--to", type=name, required=True, metavar="NAME", help="transformers, ctranslate2 or onnx")
    parser.add_argument(
        "--output", type=path, metavar="FOLDER", help="to write (default: exports/NAME in the checkpoint)"
    )
    parser.add_argument("--quantization", metavar="Q", help="of the weights: int8, int8_bfloat16 or float16")
    parser.add_argument(
        "--rows", type=path, metavar="FILE", help="rows to compare on (default: the validation split of the training)"
    )
    parser.add_argument(
        "--num-rows", type=count_or_all, default=1000, metavar="N", help="rows to compare, or all (default: 1000)"
    )


def run(arguments: Namespace) -> None:
    """Convert a trained model for another runtime, once it is proven on real rows to do the same there."""
    with quick_imports():
        from transformers.utils import logging as transformers_logging

        from pipeline.exporting.export import export

    logging.basicConfig(format="%(message)s")
    logging.getLogger("pipeline").setLevel(logging.INFO)
    transformers_logging.disable_progress_bar()
    with interrupted_by_sigterm():
        folder = export(
            arguments.checkpoint,
            arguments.to,
            arguments.output,
            quantization=arguments.quantization,
            rows=arguments.rows,
            num_rows=arguments.num_rows,
        )
    print(folder)
