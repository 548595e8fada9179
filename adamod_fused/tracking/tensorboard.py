"""The statistics of the bound in TensorBoard."""

from __future__ import annotations

from typing import Any

from .rows import LOG2_EDGES, NewRows, Row, count_of, histograms, scalars, unwrapped


class BoundStatsWriter:
    """Writes each tracked step once: a curve for every number, and both histograms.

    The histograms are over log2 of the rate, since TensorBoard's axis is linear.

    Args:
        writer: a ``torch.utils.tensorboard.SummaryWriter``.
        per_tensor: a tag for every tensor instead of every param group. Default: False.
    """

    def __init__(self, writer: Any, per_tensor: bool = False) -> None:
        self._writer = writer
        self._new = NewRows(per_tensor)

    def log(self, optimizer: Any, step: int | None = None) -> None:
        """To be called after ``optimizer.step()``; writes nothing if no new step was tracked.

        ``step`` is the place on TensorBoard's axis. Default: None, the optimizer's own count.
        """
        optimizer = unwrapped(optimizer)
        with self._new.of(optimizer) as rows:
            if rows:
                self._write(rows, count_of(optimizer) if step is None else step)

    def _write(self, rows: list[Row], step: int) -> None:
        for tag, number in scalars(rows).items():
            self._writer.add_scalar(tag, number, step)
        for tag, counts in histograms(rows).items():
            self._add_histogram(tag, counts, step)

    def _add_histogram(self, tag: str, counts: list[int], step: int) -> None:
        middles = [edge + 0.5 for edge in LOG2_EDGES[:-1]]
        weighted = [count * middle for count, middle in zip(counts, middles, strict=True)]
        self._writer.add_histogram_raw(
            tag,
            min=LOG2_EDGES[0],
            max=LOG2_EDGES[-1],
            num=sum(counts),
            sum=sum(weighted),
            sum_squares=sum(x * middle for x, middle in zip(weighted, middles, strict=True)),
            bucket_limits=LOG2_EDGES[1:],
            bucket_counts=counts,
            global_step=step,
        )
