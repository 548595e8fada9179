"""The page: one file of HTML with plotly.js, the figures and everything else inside.

It loads nothing, and its content security policy has the browser see to that.
"""

from __future__ import annotations

import html
import json
from importlib.resources import files
from typing import Any

from plotly.offline import get_plotlyjs

from .. import __version__
from .panels import Panel, panels
from .series import Run
from .summary import sentences, table
from .themes import css_variables, templates

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'"
)


def page(run: Run, name: str) -> str:
    """The whole page about ``run``, whose folder is ``name``."""
    shown = panels(run)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>The bound in {html.escape(name)}</title>
<style>
:root {{ color-scheme: light dark; {css_variables("light")} }}
@media (prefers-color-scheme: dark) {{ :root {{ {css_variables("dark")} }} }}
{_text("page.css")}</style>
</head>
<body>
<main>
<header>
<h1>What AdaMod&rsquo;s bound did</h1>
<p class="about">{html.escape(_about(run, name))}</p>
</header>
<section aria-labelledby="in-short">
<h2 id="in-short">In short</h2>
<ul>
{"".join(f"<li>{html.escape(text)}</li>" for text in sentences(run))}
</ul>
{_table(run)}
</section>
<noscript><p>The figures are drawn by JavaScript, which is switched off here.</p></noscript>
<div class="figures">
{"".join(map(_figure, shown))}
</div>
<footer>
<p>η is Adam&rsquo;s learning rate of an element, lr / (√v + eps), with v corrected for its start
at zero; s is its moving average, the bound; a step uses the smaller of the two. Made by
adamod_fused {html.escape(__version__)}.</p>
</footer>
</main>
<script type="application/json" id="data">{_data(shown)}</script>
<script>{get_plotlyjs()}</script>
<script>
{_text("page.js")}</script>
</body>
</html>
"""


def _about(run: Run, name: str) -> str:
    first, last = run.tracked[0], run.tracked[-1]
    steps = f"steps {first.step:,} to {last.step:,}, {len(run.tracked):,} of them tracked"
    if first is last:
        steps = f"step {first.step:,}"
    tensors = "1 tensor" if len(last.names) == 1 else f"{len(last.names):,} tensors"
    return f"{name}: {steps}; {tensors}, {last.total:,} elements"


def _table(run: Run) -> str:
    steps = [f"step {tracked.step:,}" for tracked in (run.tracked[0], run.tracked[-1])]
    heads = "".join(f'<th scope="col">{step}</th>' for step in steps)
    rows = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th>'
        + "".join(f"<td>{html.escape(value)}</td>" for value in values)
        + "</tr>"
        for name, *values in table(run)
    )
    head = f'<tr><th scope="col"></th>{heads}</tr>'
    return f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"


def _figure(panel: Panel) -> str:
    title = html.escape(panel.title)
    return f"""<figure{' class="wide"' if panel.is_wide else ""}>
<h2>{title}</h2>
<figcaption>{html.escape(panel.caption)}</figcaption>
<div class="plot" id="plot-{panel.key}" role="img" aria-label="{title}"></div>
</figure>
"""


def _data(shown: list[Panel]) -> str:
    figures: dict[str, Any] = {}
    for panel in shown:
        figure = panel.figure.to_plotly_json()
        figure["layout"].pop("template", None)  # one of ours, by the reader's colour scheme
        figures[panel.key] = figure
    data = {"figures": figures, "templates": templates()}
    # Within <script> only "<" could end the element, or begin a comment.
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _text(name: str) -> str:
    return files("adamod_fused.report").joinpath(name).read_text(encoding="utf-8")
