"""What an optimizer's states take, by param group and format, beside what others would."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor
from torch.nn.parameter import is_lazy

from . import validation
from .coded_states import state_dtype
from .codes import num_blocks
from .console import aligned
from .dtensor import local
from .formats import Formats, formats_of
from .reference import COMPUTE_DTYPES

if TYPE_CHECKING:
    from .optimizer import FusedOptimizer

COLUMNS = (
    "group",
    "dtype",
    "states",
    "weights",
    "parameters",
    "elements",
    "weights' extra",
    "states' bytes",
    "an element",
    "AdaMod fp32",
    "torch Adam",
)


class MemoryRow(NamedTuple):
    """Parameters of one param group, dtype and format; sizes in bytes."""

    group: int | None
    """None in the total."""
    dtype: str
    state_format: str
    weight_format: str
    num_params: int
    numel: int
    weight_bytes: int
    """What split weights keep beside the parameters."""
    state_bytes: int
    plain_bytes: int
    """States of AdaMod in float32."""
    adam_bytes: int
    """Both moments of torch.optim.Adam, which have the parameter's dtype."""

    @property
    def bytes_per_element(self) -> float:
        """Of states and weights' extra."""
        return (self.weight_bytes + self.state_bytes) / max(1, self.numel)


class MemoryReport(list[MemoryRow]):
    """Rows, one for each param group, dtype and format; as a string a table with the total.

    The elements are those of this rank. Step counts, four bytes a parameter, are left out.
    """

    @property
    def total(self) -> MemoryRow:
        """All rows as one."""
        sums = [sum(values) for values in zip(*(row[4:] for row in self), strict=True)]
        return MemoryRow(None, "", "", "", *(sums or [0] * 6))

    def __str__(self) -> str:
        return "\n".join(aligned(COLUMNS, [_cells(row) for row in (*self, self.total)]))


def _cells(row: MemoryRow) -> list[str]:
    counts = [f"{count:,}" for count in row[4:8]]
    others = [f"{count:,}" for count in row[8:]]
    name = "total" if row.group is None else str(row.group)
    return [name, *row[1:4], *counts, f"{row.bytes_per_element:.2f}", *others]


def memory_report(optimizer: FusedOptimizer) -> MemoryReport:
    """The report of an optimizer as its param groups are now, whether it has stepped or not."""
    rows: dict[Any, list[int]] = {}
    num_states = len(optimizer.rule.states)
    for index, group in enumerate(optimizer.param_groups):
        for i, param in enumerate(group["params"]):
            if is_lazy(param):
                continue
            formats = formats_of(param, group, validation.label(index, i, group))
            dtype = str(param.dtype).removeprefix("torch.")
            sums = rows.setdefault((index, dtype, *formats), [0] * 6)
            for k, value in enumerate(_sizes(param, formats, num_states)):
                sums[k] += value
    return MemoryReport(MemoryRow(*key, *sums) for key, sums in rows.items())


def _sizes(param: Tensor, formats: Formats, num_states: int) -> Sequence[int]:
    numel = local(param).numel()
    state_bytes = num_states * numel * state_dtype(param, formats).itemsize
    if formats.codes_states:
        state_bytes += num_states * num_blocks(numel)
    plain_bytes = num_states * numel * COMPUTE_DTYPES[param.dtype].itemsize
    extra = 2 * numel if formats.splits_weights else 0
    return 1, numel, extra, state_bytes, plain_bytes, 2 * numel * param.dtype.itemsize
