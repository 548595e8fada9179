"""Checkpoints of other optimizers, of other frameworks' files, and the way back to torch's AdamW.

``convert`` reads a state dict of Adam or of another AdaMod, ``export`` writes one of AdamW, and
``to_tensors`` and ``from_tensors`` carry a state dict through files that hold tensors alone.
"""

from .conversion import convert, export
from .tensors import from_tensors, to_tensors

__all__ = ["convert", "export", "from_tensors", "to_tensors"]
