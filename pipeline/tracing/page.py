"""A trace as one HTML page that needs nothing but itself, no network and no other file; and as a picture."""

import json
from html import escape
from pathlib import Path

from torch import Tensor

from pipeline.inference.attention import Attention, Embedded, Step, Trace
from pipeline.plots import attention_and_losses
from pipeline.tracing.assets import SCRIPT, STYLE

COMPONENTS = 4  # of each vector; the rest is told by "..."

KINDS = {
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
    """Writes the trace of a pair as a page in UTF-8."""
    path.write_text(page(trace), encoding="utf-8")


def write_picture(trace: Trace, path: Path) -> None:
    """Draws the attention of the last layers, averaged over their heads, and the loss of each step, as a PNG."""
    source, target = trace.source.tokens, trace.decoder_input.tokens
    maps = [
        (f"{name}\nlayer {len(layers)}, mean of {trace.heads} heads", layers[-1].weights.mean(0).numpy(), rows, columns)
        for name, layers, rows, columns in (
            ("encoder self-attention", trace.encoder_attentions, source, source),
            ("decoder self-attention, masked", trace.decoder_attentions, target, target),
            ("cross-attention", trace.cross_attentions, target, source),
        )
    ]
    attention_and_losses(maps, [step.loss for step in trace.steps], trace.target_tokens, path)


def page(trace: Trace) -> str:
    title = f"{trace.source_text[:40]} → {trace.target_text[:40]}"
    sections = (pair(trace), embeddings(trace), attention(trace), steps(trace), generation(trace))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Trace: {escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
{"".join(sections)}
</main>
<script type="application/json" id="numbers">{numbers(trace)}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""


def pair(trace: Trace) -> str:
    sizes = (
        f"{trace.encoder_layers} encoder and {trace.decoder_layers} decoder layers, {trace.heads} heads, "
        f"d_model {trace.d_model}, {trace.num_parameters:,} parameters"
    )
    return f"""<header>
<h1>A Transformer, step by step</h1>
<p>One pair of sequences walked through the equations of the Transformer, with the numbers of a trained model.</p>
<dl>
<dt>Source</dt><dd><bdi>{escape(trace.source_text)}</bdi></dd>
<dt>Target</dt><dd><bdi>{escape(trace.target_text)}</bdi></dd>
<dt>Model</dt><dd>{escape(trace.model_name)}</dd>
<dt>Size</dt><dd>{sizes}</dd>
</dl>
<nav aria-label="Sections"><ol>
<li><a href="#embeddings">1 Tokens to vectors</a></li>
<li><a href="#attention">2 Attention</a></li>
<li><a href="#steps">3 Teacher forcing</a></li>
<li><a href="#generation">4 On its own</a></li>
</ol></nav>
</header>
"""


def embeddings(trace: Trace) -> str:
    return f"""<section id="embeddings">
<h2>1 Tokens to vectors</h2>
<p>Each token's embedding, times the root of D = {trace.d_model}, plus a vector for its position p, is what the first
layer reads:</p>
<p class="equation">
<var>x</var><sub><var>p</var></sub> = √<var>D</var> · <var>E</var>[token<sub><var>p</var></sub>] + PE(<var>p</var>)<br>
PE(<var>p</var>, 2<var>i</var>) = sin(<var>p</var> / 10000<sup>2<var>i</var>/<var>D</var></sup>)<br>
PE(<var>p</var>, 2<var>i</var> + 1) = cos(<var>p</var> / 10000<sup>2<var>i</var>/<var>D</var></sup>)</p>
{embedding_table("Source, as the encoder reads it", trace.source, trace.d_model)}
{embedding_table("Target, as the decoder reads it: one place to the right", trace.decoder_input, trace.d_model)}
</section>
"""


def embedding_table(caption: str, side: Embedded, d_model: int) -> str:
    shown = min(COMPONENTS, d_model)
    groups = "".join(
        f'<th scope="colgroup" colspan="{shown}" class="first">{name}</th>'
        for name in ("√<var>D</var> · <var>E</var>", "PE(<var>p</var>)", "<var>x</var><sub><var>p</var></sub>")
    )
    columns = "".join(f'<th scope="col"{first(index)}>{index}</th>' for index in range(shown)) * 3
    rows = ""
    for position, (token, token_id) in enumerate(zip(side.tokens, side.ids, strict=True)):
        cells = "".join(
            f"<td{first(index)}>{fixed(number)}</td>"
            for vectors in (side.vectors, side.positions, side.inputs)
            for index, number in enumerate(vectors[position, :shown].tolist())
        )
        rows += f"<tr>{row_token(token)}<td>{token_id}</td><td>{position}</td>{cells}</tr>\n"
    return f"""<div class="scroll" tabindex="0"><table>
<caption>{caption}: components 0 to {shown - 1} of {d_model}</caption>
<thead><tr><th scope="col" rowspan="2" class="token">token</th><th scope="col" rowspan="2">id</th>
<th scope="col" rowspan="2"><var>p</var></th>{groups}</tr><tr>{columns}</tr></thead>
<tbody>{rows}</tbody></table></div>"""


def attention(trace: Trace) -> str:
    width = trace.d_model // trace.heads
    kinds = "".join(
        f"""<section data-kind="{kind}" aria-labelledby="{kind}">
<h3 id="{kind}">{name}</h3>
<p>{meaning}</p>
<div class="controls">{select(kind, "layer", num_layers, num_layers)}{select(kind, "head", trace.heads, 1)}</div>
<div class="side-by-side projections"></div>
<div><div class="side-by-side maps"></div>
<p class="readout" aria-live="polite"></p></div>
</section>
"""
        for (kind, (name, meaning)), num_layers in zip(
            KINDS.items(), (trace.encoder_layers, trace.decoder_layers, trace.decoder_layers), strict=True
        )
    )
    return f"""<section id="attention">
<h2>2 Attention</h2>
<p>Three linear maps make queries, keys and values of the states; each of the {trace.heads} heads has its own
E = {width} components of them. A score says how well a query fits a key, the softmax makes weights of a row of scores,
and the weights mix the values:</p>
<p class="equation">Attention(<var>Q</var>, <var>K</var>, <var>V</var>) =
softmax(<var>Q</var><var>K</var><sup>T</sup> / √<var>E</var>) <var>V</var></p>
<p class="scale"><span>weight 0</span><i></i>
<span>1; scores from the lowest to the highest in the paler half</span></p>
<noscript><p>The maps need JavaScript. The picture that was written beside this page shows them averaged over heads.</p>
</noscript>
{kinds}</section>
"""


def select(kind: str, name: str, count: int, chosen: int) -> str:
    options = "".join(
        f'<option value="{number - 1}"{" selected" if number == chosen else ""}>{number}</option>'
        for number in range(1, count + 1)
    )
    return f'<label>{name}<select name="{kind}-{name}">{options}</select></label>'


def steps(trace: Trace) -> str:
    total, cards = 0.0, ""
    for number, step in enumerate(trace.steps, start=1):
        total += step.loss
        cards += card(number, trace.decoder_input.tokens[:number], step, total)
    targets = len(trace.target_ids)
    return f"""<section id="steps">
<h2>3 Teacher forcing</h2>
<p>At step t the decoder is given the right tokens before it, whatever it would have said itself, and gives a
probability to every token of the vocabulary. The loss of the step is −log p of the right one, in nats.</p>
<ol class="steps">
{cards}</ol>
<div class="scroll" tabindex="0"><table>
<caption>The same loss in two ways</caption>
<tbody>
<tr><th scope="row" class="left">step by step: the sum of {targets} losses, each of a call that saw only the tokens
before it</th><td>{trace.summed_loss:.6f}</td></tr>
<tr><th scope="row" class="left">in parallel, as in training: {trace.parallel_loss:.6f} a target, times {targets}</th>
<td>{trace.parallel_summed_loss:.6f}</td></tr>
<tr class="total"><th scope="row" class="left">difference</th>
<td>{abs(trace.summed_loss - trace.parallel_summed_loss):.1e}</td></tr>
</tbody></table></div>
<p>One forward pass under the causal mask does the work of all steps: this is why a Transformer trains in parallel.</p>
</section>
"""


def card(number: int, prefix: list[str], step: Step, total: float) -> str:
    shown = [token_id for token_id, _, _ in step.candidates]
    bars = "".join(
        bar(token, probability, "right" if token_id == step.token_id else "")
        for token_id, token, probability in step.candidates
    )
    if step.token_id not in shown:
        bars += bar(step.token, step.probability, "right beyond")
    read = " ".join(f"<bdi>{escape(token)}</bdi>" for token in prefix)
    return f"""<li><h3>Step {number}</h3>
<p class="prefix" aria-label="decoder input so far">{read}</p>
<table><caption>most probable next tokens</caption><tbody>{bars}</tbody></table>
<dl><dt>right token</dt><dd class="token"><bdi>{escape(step.token)}</bdi></dd>
<dt>probability</dt><dd>{share(step.probability)}, rank {step.rank}</dd>
<dt>loss</dt><dd>{step.loss:.4f}</dd><dt>sum so far</dt><dd>{total:.4f}</dd></dl></li>
"""


def bar(token: str, probability: float, name: str) -> str:
    return (
        f'<tr class="{name}"><th scope="row" class="token" title="{escape(token)}"><bdi>{escape(token)}</bdi></th>'
        f'<td class="bar"><i style="width:{100 * probability:.1f}%"></i></td><td>{share(probability)}</td></tr>'
    )


def generation(trace: Trace) -> str:
    length = max(len(trace.target_ids), len(trace.generated_ids))
    target, own = trace.target_tokens, trace.generated_tokens
    same = [trace.target_ids[i : i + 1] == trace.generated_ids[i : i + 1] for i in range(length)]
    rows = "".join(
        f'<tr><th scope="row">{index + 1}</th>{token_cell(target, index)}{token_cell(own, index)}'
        f'<td class="left">{"same" if same[index] else "<strong>differs</strong>"}</td></tr>\n'
        for index in range(length)
    )
    return f"""<section id="generation">
<h2>4 On its own</h2>
<p>Without teacher forcing the decoder reads what it said itself: the most probable token at each step, until
&lt;/s&gt;. From the first difference on it goes another way than above. Here {sum(same)}
of {length} places are the same.</p>
<dl>
<dt>Target</dt><dd><bdi>{escape(trace.target_text)}</bdi></dd>
<dt>Model</dt><dd><bdi>{escape(trace.generated_text)}</bdi></dd>
</dl>
<div class="scroll" tabindex="0"><table>
<caption>Token by token</caption>
<thead><tr><th scope="col">step</th><th scope="col" class="token">target</th><th scope="col" class="token">model</th>
<th scope="col" class="left">the two</th></tr></thead>
<tbody>{rows}</tbody></table></div>
</section>
"""


def numbers(trace: Trace) -> str:
    """What the selectors choose from, as JSON that cannot end its script element."""
    source, target = trace.source.tokens, trace.decoder_input.tokens
    kinds = {
        "encoder": (trace.encoder_attentions, source, source, "source tokens", "source tokens", False),
        "decoder": (trace.decoder_attentions, target, target, "target tokens", "target tokens", True),
        "cross": (trace.cross_attentions, target, source, "target tokens", "source tokens", False),
    }
    data = {
        name: {
            "rows": rows,
            "columns": columns,
            "reader": reader,
            "read": read,
            "width": trace.d_model // trace.heads,
            "layers": [[of_head(each, head, masked) for head in range(trace.heads)] for each in layers],
        }
        for name, (layers, rows, columns, reader, read, masked) in kinds.items()
    }
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def of_head(attention: Attention, head: int, masked: bool) -> dict[str, list[list[float]]]:
    """The numbers of one head, rounded; of a masked attention, rows end with the token that looks."""

    def cut(matrix: Tensor, digits: int) -> list[list[float]]:
        rows = rounded(matrix[head], digits)
        return [row[: index + 1] for index, row in enumerate(rows)] if masked else rows

    return {
        "q": rounded(attention.queries[head, :, :COMPONENTS], 2),
        "k": rounded(attention.keys[head, :, :COMPONENTS], 2),
        "v": rounded(attention.values[head, :, :COMPONENTS], 2),
        "scores": cut(attention.scores, 2),
        "weights": cut(attention.weights, 3),
    }


def rounded(matrix: Tensor, digits: int) -> list[list[float]]:
    values = [[round(number, digits) for number in row] for row in matrix.tolist()]
    return [[int(number) if number == int(number) else number for number in row] for row in values]  # 0, not 0.0


def row_token(token: str) -> str:
    return f'<th scope="row" class="token"><bdi>{escape(token)}</bdi></th>'


def token_cell(tokens: list[str], index: int) -> str:
    return f'<td class="token"><bdi>{escape(tokens[index])}</bdi></td>' if index < len(tokens) else "<td>–</td>"


def fixed(number: float) -> str:
    return f"{round(number, 2) + 0.0:.2f}".replace("-", "−")  # -0.0 + 0.0 is 0.0


def share(probability: float) -> str:
    return f"{probability:.3f}" if probability >= 0.0005 else f"{probability:.0e}"


def first(index: int) -> str:
    return ' class="first"' if index == 0 else ""
