"""teacher-forcing publish: a model on the Hub."""

from argparse import Namespace

from pipeline.commands.arguments import Parser, name, path
from pipeline.commands.process import quick_imports
from pipeline.errors import ConfigError


def add_arguments(parser: Parser) -> None:
    parser.add_argument("checkpoint", type=path, help="folder of a trained model, or a checkpoint-N below one")
    parser.add_argument("name", type=name, help="owner/name of the repository, which is created if it does not exist")
    parser.add_argument(
        "--public", action="store_true", help="everybody sees it, where it is created (default: only its owner does)"
    )
    parser.add_argument(
        "--as",
        dest="form",
        choices=["own", "transformers"],
        default="own",
        help="own: this project's class, with its code (default); transformers: the same model as a stock class, which "
        "loads without trust_remote_code in transformers 4 and 5",
    )
    parser.add_argument(
        "--with-pipeline",
        action="store_true",
        help="add the code of pipeline('translation') for transformers 5 to the form transformers",
    )


def run(arguments: Namespace) -> None:
    """Publish a trained model, or a checkpoint of a run, on the Hub."""
    if not arguments.checkpoint.is_dir():
        raise ConfigError(f"{arguments.checkpoint}: no such folder")
    with quick_imports():
        from pipeline.publishing import hub

    hub.publish(
        arguments.checkpoint,
        arguments.name,
        private=not arguments.public,
        form=arguments.form,
        with_pipeline=arguments.with_pipeline,
    )
    print(f"{arguments.checkpoint} is published as {arguments.name}")
