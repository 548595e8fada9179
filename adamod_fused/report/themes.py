"""The colours of the page, light and dark: of its text, and plotly's templates."""

from __future__ import annotations

from typing import Any, NamedTuple

from plotly import graph_objects as go

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"


class Theme(NamedTuple):
    """A colour for each use; lines by Okabe and Ito, whom colour-blind readers can follow."""

    page: str
    card: str
    ink: str
    faint: str
    grid: str
    lines: tuple[str, ...]
    heat: tuple[str, ...]
    """From few to many, in one hue and of steady lightness: also to be read without colours."""


THEMES = {
    "light": Theme(
        page="#f4f5f7",
        card="#ffffff",
        ink="#1c2330",
        faint="#596273",
        grid="#e3e6eb",
        lines=("#0072b2", "#d55e00", "#009e73", "#cc79a7"),
        heat=("#dce9f5", "#a9cbe6", "#68a5d2", "#2f7ab8", "#12508f", "#08264f"),
    ),
    "dark": Theme(
        page="#0e1116",
        card="#171b22",
        ink="#e6e9ef",
        faint="#9aa4b5",
        grid="#2a303b",
        lines=("#56b4e9", "#ff9d4d", "#2fc79a", "#e39ac4"),
        heat=("#1d3048", "#24527d", "#3079b0", "#55a3d4", "#94cbec", "#e2f3fd"),
    ),
}


def templates() -> dict[str, Any]:
    """What plotly takes colours, fonts and margins from, by theme."""
    return {name: _template(theme).to_plotly_json() for name, theme in THEMES.items()}


def _template(theme: Theme) -> Any:
    last = len(theme.heat) - 1
    axis = {
        "gridcolor": theme.grid,
        "linecolor": theme.grid,
        "zerolinecolor": theme.grid,
        "tickcolor": theme.grid,
        "tickfont": {"color": theme.faint, "size": 12},
        "title": {"font": {"size": 13}, "standoff": 10},
        "ticks": "outside",
        "automargin": True,
    }
    return go.layout.Template(
        layout={
            "paper_bgcolor": theme.card,
            "plot_bgcolor": theme.card,
            "font": {"family": FONT, "color": theme.ink, "size": 13},
            "colorway": theme.lines,
            "margin": {"l": 56, "r": 12, "t": 34, "b": 48},
            "height": 340,
            "hovermode": "closest",
            "hoverlabel": {"font": {"family": FONT}, "namelength": -1},
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": theme.faint, "activecolor": theme.ink},
            "xaxis": axis | {"separatethousands": True},
            "yaxis": axis,
        },
        data={
            "heatmap": [
                {
                    "colorscale": [[i / last, color] for i, color in enumerate(theme.heat)],
                    "colorbar": {
                        "thickness": 12,
                        "outlinewidth": 0,
                        "tickfont": {"color": theme.faint, "size": 11},
                        "title": {"font": {"size": 12}},
                    },
                }
            ]
        },
    )


def css_variables(name: str) -> str:
    """A theme's colours for page.css."""
    theme = THEMES[name]
    named = {"page": theme.page, "card": theme.card, "ink": theme.ink, "faint": theme.faint}
    pairs = [*named.items(), ("grid", theme.grid), ("accent", theme.lines[0])]
    return " ".join(f"--{key}: {color};" for key, color in pairs)
