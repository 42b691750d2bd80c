"""Show a trace as one HTML page that needs no network and no other file, and as a picture.

The words and the layout of the page are in `trace.html.jinja`, its looks in `trace.css`, and the attention maps, which
a reader picks by layer and head, in `trace.js`.
"""

import json
from itertools import accumulate, zip_longest
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.inference.attention import Attention, EmbeddedSequence, Trace
from pipeline.pages.base import read, render
from pipeline.plots import draw_attention_and_losses

COMPONENTS = 4  # of each vector; the page says of how many

# Key in the page's numbers -> title and meaning.
ATTENTION_KINDS = {
    "encoder": (
        "Encoder self-attention",
        "Every token of the source looks at every token of the source.",
    ),
    "decoder": (
        "Decoder self-attention, masked",
        "Every token that the decoder has read looks at itself and what came before; the future is masked.",
    ),
    "cross": (
        "Cross-attention",
        "Every token that the decoder has read looks at the encoded source: queries are the decoder's, keys and values "
        "the encoder's.",
    ),
}


def write_page(trace: Trace, path: Path) -> None:
    """Write the trace of a pair as a page in UTF-8."""
    path.write_text(render_page(trace), encoding="utf-8")


def write_picture(trace: Trace, path: Path) -> None:
    """Draw the attention of the last layers, averaged over their heads, and the loss of each step, as a PNG."""
    source, target = trace.source.tokens, trace.decoder_input.tokens
    maps = [
        (f"{name}\nlayer {len(layers)}, mean of {trace.heads} heads", layers[-1].weights.mean(0).numpy(), rows, columns)
        for name, layers, rows, columns in (
            ("encoder self-attention", trace.encoder_attentions, source, source),
            ("decoder self-attention, masked", trace.decoder_attentions, target, target),
            ("cross-attention", trace.cross_attentions, target, source),
        )
    ]
    draw_attention_and_losses(maps, [step.loss for step in trace.steps], trace.target_tokens, path)


def render_page(trace: Trace) -> str:
    """Return the page as HTML."""
    num_layers = {"encoder": trace.encoder_layers, "decoder": trace.decoder_layers, "cross": trace.decoder_layers}
    return render(
        "trace",
        trace=trace,
        script=read("base.js") + read("trace.js"),
        share=share,
        numbers=attention_numbers(trace),
        source_rows=embedding_rows(trace.source),
        target_rows=embedding_rows(trace.decoder_input),
        attention_kinds=[
            {"key": key, "title": title, "meaning": meaning, "layers": num_layers[key]}
            for key, (title, meaning) in ATTENTION_KINDS.items()
        ],
        running_sums=list(accumulate(step.loss for step in trace.steps)),
        comparison=compare_tokens(trace),
    )


def embedding_rows(sequence: EmbeddedSequence) -> list[dict[str, Any]]:
    """Return a row for each token: its id, and the first components of its vector, its position and their sum."""
    vectors = (sequence.vectors, sequence.positions, sequence.inputs)  # (T, D) each
    return [
        {
            "token": token,
            "id": token_id,
            "numbers": [vector[position, :COMPONENTS].tolist() for vector in vectors],
        }
        for position, (token, token_id) in enumerate(zip(sequence.tokens, sequence.ids, strict=True))
    ]


def compare_tokens(trace: Trace) -> list[dict[str, Any]]:
    """Return for each place the target's and the model's token, and whether they are the same; None behind an end."""
    target = zip(trace.target_ids, trace.target_tokens, strict=True)
    generated = zip(trace.generated_ids, trace.generated_tokens, strict=True)
    return [
        {"target": token, "model": generated_token, "is_same": token_id == generated_id}
        for (token_id, token), (generated_id, generated_token) in zip_longest(target, generated, fillvalue=(None, None))
    ]


def attention_numbers(trace: Trace) -> str:
    """Return what the selectors choose from, as JSON that cannot end its script element."""
    source, target = trace.source.tokens, trace.decoder_input.tokens
    kinds = {
        "encoder": (trace.encoder_attentions, source, source, "source tokens", "source tokens", False),
        "decoder": (trace.decoder_attentions, target, target, "target tokens", "target tokens", True),
        "cross": (trace.cross_attentions, target, source, "target tokens", "source tokens", False),
    }
    data = {
        key: {
            "rows": rows,
            "columns": columns,
            "reader": reader,
            "read": read,
            "width": trace.d_model // trace.heads,
            "layers": [[head_numbers(layer, head, is_masked) for head in range(trace.heads)] for layer in layers],
        }
        for key, (layers, rows, columns, reader, read, is_masked) in kinds.items()
    }
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def head_numbers(attention: Attention, head: int, is_masked: bool) -> dict[str, list[list[float]]]:
    """Return the numbers of one head, rounded; rows of a masked attention end with the token that looks."""

    def visible(matrix: Tensor, digits: int) -> list[list[float]]:
        rows = rounded(matrix[head], digits)
        return [row[: index + 1] for index, row in enumerate(rows)] if is_masked else rows

    return {
        "q": rounded(attention.queries[head, :, :COMPONENTS], 2),
        "k": rounded(attention.keys[head, :, :COMPONENTS], 2),
        "v": rounded(attention.values[head, :, :COMPONENTS], 2),
        "scores": visible(attention.scores, 2),
        "weights": visible(attention.weights, 3),
    }


def rounded(matrix: Tensor, digits: int) -> list[list[float]]:
    """Round all numbers of a matrix; whole ones become integers, which are shorter in JSON."""
    values = [[round(number, digits) for number in row] for row in matrix.tolist()]
    return [[int(number) if number == int(number) else number for number in row] for row in values]


def share(probability: float) -> str:
    """Format a probability with three decimals, or as a power of ten where these would be 0."""
    return f"{probability:.3f}" if probability >= 0.0005 else f"{probability:.0e}"
