"""adamod_fused: AdaMod as one pass over memory, a drop-in for ``torch.optim.Adam``."""

from importlib.metadata import PackageNotFoundError, version

from . import backends, checkpoint, functional
from .adamod import AdaMod
from .gradient_release import GradientRelease, release_gradients

try:
    __version__ = version("adamod_fused")
except PackageNotFoundError:  # used from a source tree that was not installed
    __version__ = "unknown"

__all__ = [
    "AdaMod",
    "GradientRelease",
    "__version__",
    "backends",
    "checkpoint",
    "functional",
    "release_gradients",
]
