"""What all pages have in common: how a template is filled, and the style that they share."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

FOLDER = Path(__file__).parent  # of the templates, the styles and the scripts


def render(name: str, folder: Path = FOLDER, **values: object) -> str:
    """Fill the template of a page, and return the page as HTML.

    Texts are escaped, so that none can be taken for markup. The template gets `style`, the shared style and that of the
    page.

    Args:
        name: of the template and the style in `folder`, without their endings.
    """
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["two_digits"] = two_digits
    style = read("base.css") + read(f"{name}.css", folder)
    return environment.get_template(f"{name}.html.jinja").render(style=style, **values)


def read(name: str, folder: Path = FOLDER) -> str:
    """Read a file that is put into a page as it is."""
    return (folder / name).read_text(encoding="utf-8")


def two_digits(number: float) -> str:
    """Format a number with two decimals, a true minus sign, and no sign before zero."""
    return f"{round(number, 2) + 0.0:.2f}".replace("-", "−")  # -0.0 + 0.0 is 0.0
