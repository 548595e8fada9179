"""Optional dependencies, probed here and nowhere else.

triton runs one of the backends. rich makes tables and progress bars prettier; plain lines do
without it. matplotlib draws the demo's figure, and plotly the report; without them there is none.
The loggers and trainers that adamod_fused.tracking writes to are imported by the modules of their
names.
"""

from __future__ import annotations

from importlib.util import find_spec

INSTALL = "pip install 'adamod_fused[demo]'"
INSTALL_REPORT = "pip install 'adamod_fused[report]'"


def installed(package: str) -> bool:
    """Whether ``package`` can be imported, without importing it."""
    return find_spec(package) is not None


def require_matplotlib() -> None:
    """Raises RuntimeError with the remedy if the figure could not be drawn."""
    if not installed("matplotlib"):
        raise RuntimeError(f"the demo draws with matplotlib, which is missing: {INSTALL}")


def require_plotly() -> None:
    """Raises RuntimeError with the remedy if a report could not be drawn."""
    if not installed("plotly"):
        raise RuntimeError(f"the report is drawn with plotly, which is missing: {INSTALL_REPORT}")
