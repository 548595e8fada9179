"""Optional dependencies, probed here and nowhere else.

triton runs one of the backends. rich makes tables and progress bars prettier; plain lines do
without it. matplotlib draws the demo's figure; there is no demo without it.
"""

from __future__ import annotations

from importlib.util import find_spec

INSTALL = "pip install 'adamod_fused[demo]'"


def installed(package: str) -> bool:
    """Whether ``package`` can be imported, without importing it."""
    return find_spec(package) is not None


def require_matplotlib() -> None:
    """Raises RuntimeError with the remedy if the figure could not be drawn."""
    if not installed("matplotlib"):
        raise RuntimeError(f"the demo draws with matplotlib, which is missing: {INSTALL}")
