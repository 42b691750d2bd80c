"""Cards as a reader of Markdown sees them, text that must not change them, and reports of exports."""

from typing import Any

from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from markdown_it.token import Token


def render_markdown(text: str) -> list[Token]:
    """Return the blocks of a card behind its front matter, as a Markdown reader sees them."""
    return MarkdownIt("commonmark").enable("table").parse(ModelCard(text).text)


HOSTILE = [
    "a <b> & {name} {{ name }} {% raw %} 'é' \\ \n end",
    "\r\n```\r# Owned\r\r<script>alert(1)</script>",
    "```\n````\n# Owned",
    '"); print("owned") #',
    "x\n---\nlicense: mit\n---\n# Owned",
    "](javascript:alert(1)) [a](javascript:alert(1)) | <img src=x onerror=alert(1)> |",
    "`` ` ``` <!-- \u2028 # Owned \u202e \x0b",
]

SEARCHED: dict[str, Any] = {
    "export": "ctranslate2",
    "quantization": "int8",
    "weights": {},
    "versions": {"ctranslate2": "4.8.5"},
    "rows": {"compared": 1000},
    "bytes": {"model": 400, "export": 100},
    "searches": {
        "greedy": {
            "equal": 897,
            "bleu": {"difference": 0.0, "interval": [-0.1, 0.1]},
            "rows_per_second": {"ratio": 2.5},
        },
        "beam_4": {
            "equal": 846,
            "bleu": {"difference": -0.05, "interval": [-0.31, 0.21]},
            "rows_per_second": {"ratio": 3.0},
        },
    },
}
COMPUTED: dict[str, Any] = {
    "export": "onnx",
    "quantization": None,
    "weights": {},
    "rows": {"compared": 500},
    "bytes": {"model": 400, "export": 420},
    "outputs": {
        "unit": "share of the largest logit",
        "largest_difference": 1.5e-6,
        "choices": {"compared": 500, "different": 1},
        "rows_per_second": {"ratio": 1.5},
    },
}
