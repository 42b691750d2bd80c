"""teacher-forcing export: a model in the form of another runtime."""

import json
import logging
from argparse import Namespace

from pipeline.commands.arguments import Parser, add_json, count_or_all, name, path
from pipeline.commands.process import quick_imports, show_logs
from pipeline.commands.report import Report
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
    add_json(parser)


def run(arguments: Namespace) -> Report:
    """Convert a trained model for another runtime, once it is proven on real rows to do the same there."""
    with quick_imports():
        from pipeline.exporting.export import export
        from pipeline.inference.engines.base import EQUIVALENCE_FILE

    show_logs(logging.INFO)
    with interrupted_by_sigterm():
        folder = export(
            arguments.checkpoint,
            arguments.to,
            arguments.output,
            quantization=arguments.quantization,
            rows=arguments.rows,
            num_rows=arguments.num_rows,
        )
    proof = json.loads((folder / EQUIVALENCE_FILE).read_text(encoding="utf-8"))
    return Report({"folder": str(folder), "equivalence": proof}, str(folder))
