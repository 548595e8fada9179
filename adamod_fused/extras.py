"""Optional dependencies, probed here and nowhere else.

triton runs one of the backends. rich makes tables and progress bars prettier; plain lines do
without it. matplotlib draws the demo's figure, and plotly the report; without them there is none.
The loggers and trainers that adamod_fused.tracking writes to are imported by the modules of their
names.
"""

from __future__ import annotations

import importlib.metadata
import re
from functools import cache
from importlib.util import find_spec

INSTALL = "pip install 'adamod_fused[demo]'"
INSTALL_REPORT = "pip install 'adamod_fused[report]'"


def installed(package: str) -> bool:
    """Whether ``package`` can be imported, without importing it."""
    return find_spec(package) is not None


@cache
def version_of(package: str) -> str | None:
    """The version of the distribution that installed ``package``; None where no record says it.

    Distributions of one package have several names: triton, pytorch-triton-rocm, triton-windows.
    The package is not imported, which may be slow and may fail.
    """
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        distributions = importlib.metadata.packages_distributions().get(package)
        return importlib.metadata.version(distributions[0]) if distributions else None


def is_older(version: str, oldest: tuple[int, int]) -> bool:
    """Whether ``version``, such as "3.2.0+git1a2b" or "3.2rc1", is of an earlier release."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return numbers is not None and tuple(map(int, numbers.groups())) < oldest


def require_matplotlib() -> None:
    """Raises RuntimeError with the remedy if the figure could not be drawn."""
    if not installed("matplotlib"):
        raise RuntimeError(f"the demo draws with matplotlib, which is missing: {INSTALL}")


def require_plotly() -> None:
    """Raises RuntimeError with the remedy if a report could not be drawn."""
    if not installed("plotly"):
        raise RuntimeError(f"the report is drawn with plotly, which is missing: {INSTALL_REPORT}")
