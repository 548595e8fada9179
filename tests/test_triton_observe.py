"""The Triton look at a step in the interpreter: bit for bit the reference's."""

from __future__ import annotations

import pytest
from interpreted import INTERPRETED, InChildProcess, Interpreted
from watched import FEW_SIZES, STORED, Stored, check_looks, clip_all

pytest.importorskip("triton", reason="the Triton backend needs triton")


class TestInChildProcess(InChildProcess):
    __test__ = not INTERPRETED


class TestInterpreted(Interpreted):
    __test__ = INTERPRETED

    @pytest.mark.parametrize("stored", [STORED[i] for i in (0, 3, 4, 5, 7)], ids=str)
    def test_kernel_sees_what_the_reference_sees(self, stored: Stored):
        check_looks("triton", stored, sizes=FEW_SIZES, steps=2)

    def test_many_rows_whose_steps_the_device_counts(self):
        sizes = (*range(40), 0, 255, 256, 16383, 16384, 0, 4097, 40000)
        check_looks("triton", STORED[0], sizes=sizes, steps=1, capturable=True)

    def test_gradients_are_seen_as_the_step_uses_them(self):
        check_looks("triton", STORED[0], sizes=(31, 16385, 7), steps=1, before_step=clip_all)

    def test_constants_are_those_of_the_oracle(self):
        from adamod_fused.triton_kernels import observe, table

        from adamod_fused import observed

        assert observe.LANES.value == 2**observe.HALVINGS.value == observed.LANES
        assert observe.BINS.value == observed.HISTOGRAM_BINS
        assert observe.FIRST_EXPONENT.value == 127 + observed.HISTOGRAM_EXPONENT
        assert observe.COLUMNS.value == observed.COLUMNS
        assert observed.SEGMENT_SIZE % table.CHUNK_SIZE == 0  # a segment begins with a chunk
