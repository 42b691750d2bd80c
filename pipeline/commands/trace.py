"""teacher-forcing trace: a pair on its way through a model."""

from argparse import Namespace
from pathlib import Path

from pipeline.commands.arguments import Parser, add_json, add_languages, name, path
from pipeline.commands.process import quick_imports, show_logs
from pipeline.commands.report import Report
from pipeline.commands.texts import check_text
from pipeline.errors import ConfigError, explain_path


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "checkpoint", type=name, help="folder or Hub id of a trained encoder-decoder model of this project"
    )
    parser.add_argument("source", help="text that the encoder reads")
    parser.add_argument("target", help="text that the decoder should say, fed to it token by token")
    add_languages(parser)
    parser.add_argument(
        "--output", type=path, default=Path("trace.html"), help="the page; the picture goes beside it as .png"
    )
    add_json(parser)


def run(arguments: Namespace) -> Report:
    """Show a pair on its way through a model, as a page and a picture."""
    page = arguments.output
    if page.is_dir():
        raise ConfigError(f"--output {page} is a folder; name a page, such as trace.html")
    picture = page.with_suffix(".png")
    if page == picture:
        raise ConfigError(f"--output {page}: the picture takes this name; name a page, such as trace.html")
    check_text(arguments.source, "source")
    check_text(arguments.target, "target")
    with quick_imports():
        from pipeline.inference.attention import trace
        from pipeline.pages.trace import write_page, write_picture
        from pipeline.tasks.trained_model import load_trained

    show_logs()
    model, task = load_trained(arguments.checkpoint)
    languages = (arguments.source_lang, arguments.target_lang)
    result = trace(model, task, arguments.source, arguments.target, *languages)
    with explain_path(f"--output {page}"):
        write_page(result, page)
        write_picture(result, picture)
    document = {
        "page": str(page),
        "picture": str(picture),
        "summed_loss": result.summed_loss,
        "parallel_summed_loss": result.parallel_summed_loss,
        "generated_text": result.generated_text,
    }
    lines = (
        f"sum of {len(result.steps)} step losses   {result.summed_loss:.6f}",
        f"parallel loss x targets   {result.parallel_summed_loss:.6f}",
        f"the model by itself       {result.generated_text}",
        f"{page}",
        f"{picture}",
    )
    return Report(document, "\n".join(lines))
