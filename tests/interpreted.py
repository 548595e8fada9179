"""Tests of kernels in Triton's interpreter: on the CPU, in a process of their own.

Triton decides at import whether it interprets, for the whole process. So pytest runs such a file
in a child process with ``TRITON_INTERPRET=1``; setting it by hand runs the tests directly.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


class InChildProcess:
    """The tests of the file that has a subclass of this."""

    def test_interpreted(self, request):
        child = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(request.path)],
            env={**os.environ, "TRITON_INTERPRET": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert child.returncode == 0, child.stdout


class Interpreted:
    """What makes the interpreter the GPU's equal, and stricter."""

    # Overflow and NaN are among the cases; the interpreter's numpy remarks on them.
    pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

    @pytest.fixture(autouse=True)
    def ieee_bfloat16(self, monkeypatch):
        """The interpreter truncates to bfloat16 and garbles its subnormals; GPUs do not.

        test_triton_aot.py sees to it that a GPU rounds to nearest even: ``cvt.rn.bf16``.
        """
        import triton.language as tl
        from triton.runtime import interpreter

        convert = interpreter._convert_float

        def convert_float(x, source, target, rounding_mode):
            if (source, target) == (tl.float32, tl.bfloat16):
                narrow = torch.from_numpy(x.copy()).to(torch.bfloat16)
                return narrow.view(torch.int16).numpy()
            if (source, target) == (tl.bfloat16, tl.float32):
                wide = torch.from_numpy(x.view("int16").copy()).view(torch.bfloat16).float()
                return wide.numpy()
            return convert(x, source, target, rounding_mode)

        monkeypatch.setattr(interpreter, "_convert_float", convert_float)

    @pytest.fixture(autouse=True)
    def promises(self, monkeypatch):
        """The alignments promised to the compiler, each of them checked: a GPU would fault."""
        from triton.runtime import interpreter

        promises = []

        def set_attr(handle, name, values):
            (address,) = handle.data.flatten()
            (divisor,) = values
            assert address % divisor == 0, f"{address:#x} is not a multiple of {divisor}"
            promises.append(address)

        monkeypatch.setattr(interpreter.TensorHandle, "set_attr", set_attr)
        return promises
