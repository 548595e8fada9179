"""Numbers and names as the figures take them."""

from __future__ import annotations

import html
import math

LABEL_LENGTH = 42  # beyond which a name loses its middle
DIGITS = 4  # that a figure needs: all of them would triple the page


def rounded(value: float | None) -> float | None:
    """``value`` to a few significant digits; None for what cannot be drawn."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{DIGITS}g}")


def plotly_text(name: str) -> str:
    """``name`` as plotly shows it letter by letter: it reads <b> and the like as markup."""
    return html.escape(name, quote=False)


def shortened(name: str) -> str:
    """``name`` without its middle, if it is long: the ends tell layers apart."""
    if len(name) <= LABEL_LENGTH:
        return name
    half = LABEL_LENGTH // 2
    return f"{name[: half - 1]}…{name[-half:]}"
