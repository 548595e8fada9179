"""Checkpoints of other optimizers, of other frameworks' files, and the way back to torch's AdamW.

``convert`` reads a state dict of Adam or of another AdaMod, ``export`` writes one of AdamW,
``convert_format`` rounds one of AdaMod's to fewer bits, and ``to_tensors`` and ``from_tensors``
carry a state dict through files that hold tensors alone.
"""

from .conversion import convert, export
from .state_formats import convert_format
from .tensors import from_tensors, to_tensors

__all__ = ["convert", "convert_format", "export", "from_tensors", "to_tensors"]
