"""teacher-forcing average: one model of several checkpoints."""

from argparse import Namespace

from pipeline.commands.arguments import Parser, add_json, path, positive
from pipeline.commands.process import quick_imports, show_logs
from pipeline.commands.report import Report
from pipeline.errors import ConfigError
from pipeline.signals import interrupted_by_sigterm


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "checkpoints",
        nargs="+",
        type=path,
        metavar="CHECKPOINT",
        help="folder or Hub id of a trained model, of one run or of several with the same config and tokenizer; with "
        "--last or --best the folder of one run",
    )
    parser.add_argument("--output", type=path, required=True, metavar="FOLDER", help="to write; must not be there yet")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--last", type=positive, metavar="N", help="average the newest N checkpoints of the run")
    chosen.add_argument(
        "--best",
        type=positive,
        metavar="N",
        help="average its N best checkpoints on validation, by training.metric_for_best_model (default: loss)",
    )
    add_json(parser)


def run(arguments: Namespace) -> Report:
    """Average the weights of trained models into one, a folder as those that a run leaves."""
    count = arguments.best or arguments.last
    if count is not None and (len(arguments.checkpoints) > 1 or not arguments.checkpoints[0].is_dir()):
        raise ConfigError("--last and --best choose from the checkpoints of one run; name its folder, and nothing else")
    if count is None and len(arguments.checkpoints) < 2:
        raise ConfigError("there is one checkpoint, which is its own mean; name more, or give --last N or --best N")
    with quick_imports():
        from pipeline.training.averaging import average_models, choose_checkpoints

    show_logs()
    sources = arguments.checkpoints
    if count is not None:
        sources = choose_checkpoints(sources[0], count, is_best=arguments.best is not None)
    with interrupted_by_sigterm():
        average_models(sources, arguments.output)
    names = [str(source) for source in sources]
    document = {"folder": str(arguments.output), "checkpoints": names}
    return Report(document, f"{arguments.output} is the mean of {', '.join(names)}")
