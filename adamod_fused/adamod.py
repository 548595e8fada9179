"""The optimizer that users see: AdaMod's hyperparameters, their ranges and their documentation."""

from __future__ import annotations

from typing import Any

from torch.optim.optimizer import ParamsT

from . import operators, reference
from .bound_stats import EVERY, BoundTracker, every_of
from .hyperparameters import is_sequence
from .optimizer import FusedOptimizer
from .validation import check_choice, check_range, shown

VARIANTS = ("paper", "released")


def check_hyperparameters(values: dict[str, Any]) -> None:
    """Raises TypeError or ValueError where a hyperparameter of AdaMod is out of range."""
    check_range("lr", values["lr"], 0.0)
    betas = values["betas"]
    if not is_sequence(betas) or len(betas) != 2:
        raise ValueError(
            f"betas must be two numbers, (beta1, beta2), got {shown(betas)}; beta3 is an argument "
            "of its own"
        )
    check_range("beta1", betas[0], 0.0, 1.0)
    check_range("beta2", betas[1], 0.0, 1.0)
    check_range("beta3", values["beta3"], 0.0, 1.0)
    check_range("eps", values["eps"], 0.0)
    check_range("weight_decay", values["weight_decay"], 0.0)
    check_choice("variant", values["variant"], VARIANTS)
    if not isinstance(values["maximize"], bool):
        raise TypeError(f"maximize must be True or False, got {shown(values['maximize'])}")


class AdaMod(FusedOptimizer):
    r"""Adam whose every element has its learning rate bounded by that rate's own moving average.

    For each element, with :math:`t` counting from 1:

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        \eta_t &= \mathrm{lr} / (\sqrt{v_t / (1 - \beta_2^t)} + \epsilon) \\
        s_t &= \beta_3 s_{t-1} + (1 - \beta_3) \eta_t, \quad s_0 = 0 \\
        p_t &= p_{t-1} - (\mathrm{lr} \cdot \mathrm{weight\_decay} \cdot p_{t-1}
               + \min(\eta_t, s_t) \, m_t / (1 - \beta_1^t))

    The bound :math:`s` starts at 0 and is not bias-corrected: it is a warm-up of about
    :math:`1 / (1 - \beta_3)` steps, for each element by itself.

    Args:
        params: tensors to optimize, as for any ``torch.optim.Optimizer``: an iterable of
            parameters, of named parameters or of dicts that define param groups, which may
            override every hyperparameter below. dtypes float32, bfloat16, float16, float64; any
            shape, layout and mix of devices.
        lr: step size, in units of the parameter (Adam's unit: the size of a typical step).
            Default: 1e-3.
        betas: decay rates of the gradient's and the squared gradient's average, each in [0, 1): a
            sequence of two, which is kept as a tuple. Default: (0.9, 0.999).
        beta3: decay rate of the learning rate's average, in [0, 1); 0 turns the bound off.
            Default: 0.999.
        eps: added to the root of the second moment, in units of the gradient. Default: 1e-8.
        weight_decay: decoupled weight decay, multiplied by lr, as in AdamW, but in float32 as exact
            for a small lr as for a large one. It turns an infinite weight into NaN; at 0 infinite
            weights stay. Default: 0.0.
        variant: ``"paper"`` as above, or ``"released"``, the form of the authors' code, whose
            bias corrections sit inside the bounded rate:
            :math:`\eta_t = \mathrm{lr} \frac{\sqrt{1-\beta_2^t}}{1-\beta_1^t} / (\sqrt{v_t} +
            \epsilon)` and :math:`p_t = p_{t-1} - (\ldots + \min(\eta_t, s_t) \, m_t)`.
            Default: "paper".
        maximize: ascend instead of descend. Default: False.
        backend: None chooses the fastest that works for each tensor; ``"cuda"``, ``"triton"``,
            ``"cpu"`` or ``"reference"`` obeys or raises. Default: None.
        foreach: accepted for torch.optim.Adam's configurations. There is one set of kernels: it
            changes nothing. Default: None.
        fused: True insists on a kernel: a tensor that only the reference serves is an error at
            the step that would use it. None and False change nothing. Default: None.
        differentiable: only False is served, because autograd does not see what a kernel writes.
            Default: False.
        capturable: True keeps step counts of parameters on a GPU there, so that ``step()`` can be
            captured in a CUDA graph; ``clip_grad_norm_(grad_scaler=...)`` and hyperparameters that
            are tensors on a GPU do the same. Parameters on a CPU count on the CPU. Default: False.
        state_format: ``"fp32"``, or ``"16bit"`` or ``"8bit"``, which keep each state in two bytes
            or one, and three bytes for every 32 elements, rounded stochastically so that averages
            do not drift. Not for float64 parameters. Default: "fp32".
        weight_format: ``"plain"``, or for bfloat16 parameters ``"split"``, which keeps the lower
            16 bits of an exact float32 weight as a state, so that training is that of float32
            parameters given the same gradients, or ``"stochastic"``, which rounds weights
            stochastically and keeps nothing. Default: "plain".
        min_coded_numel: parameters of fewer elements keep float32 states. Default: 4096.
        seed: of the random bits, a whole number >= 0; they are a function of it, of the
            parameter's place among all, of the step and of the element's index. A loaded state
            dict brings its own. Default: 0.
        track_bound: True has every 100th step, the first among them, show what the bound does to
            it (see ``bound_stats``); a number n every n-th step. Default: False.

    Hyperparameters may be 0-dim tensors. Those on a GPU (float32 or float64) are read there at
    every step and every replay of a graph, and their ranges are not checked.

    State per parameter: ``step`` (0-dim float32 tensor, on the CPU or, see above, on the
    parameter's GPU), ``exp_avg``, ``exp_avg_sq``
    and ``exp_avg_lr`` (shape and device of the parameter; float64 for float64 parameters, else
    float32, or codes as ``state_format`` says: int16 or uint8). Beside codes ``block_exponents``
    (uint8, ``[blocks of 32 elements, 3]``), and for split weights ``param_remainder`` (int16). A
    state dict holds values and no codes: bfloat16 of 8bit states and float32 of 16bit ones, both
    exact; it loads into any format.

    Raises:
        TypeError: a hyperparameter, parameter or gradient of a type or dtype that is not served.
        ValueError: a hyperparameter out of its range; a gradient or state that does not fit its
            parameter; a state dict that does not fit the optimizer.
        RuntimeError: a backend asked for by name that does not work here; ``fused=True`` where no
            kernel serves; ``fused`` and ``foreach`` both True; ``differentiable=True``; a sparse
            gradient; a tensor of ``torch.inference_mode`` to be written outside of it; a real
            tensor to be stepped in ``FakeTensorMode``.
        All are raised before any parameter or state has changed.

    Example:
        >>> import torch
        >>> from adamod_fused import AdaMod
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = AdaMod(model.parameters(), lr=1e-3)
        >>> model(torch.ones(2, 4)).sum().backward()
        >>> optimizer.step()
        >>> optimizer.zero_grad()

    References:
        Ding, Ren, Luo, Sun, "An Adaptive and Momental Bound Method for Stochastic Learning",
        arXiv 1910.12249, algorithm 1. Weight decay: Loshchilov, Hutter, arXiv 1711.05101.
    """

    rule = reference.AdaMod
    check_hyperparameters = staticmethod(check_hyperparameters)
    operator = operators.register(reference.AdaMod, check_hyperparameters)
    coded_operator = operators.register(reference.AdaMod, check_hyperparameters, coded=True)

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        beta3: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        variant: str = "paper",
        maximize: bool = False,
        backend: str | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        differentiable: bool = False,
        capturable: bool = False,
        state_format: str = "fp32",
        weight_format: str = "plain",
        min_coded_numel: int = 4096,
        seed: int = 0,
        track_bound: bool | int = False,
    ) -> None:
        every = every_of(track_bound)
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "beta3": beta3,
                "eps": eps,
                "weight_decay": weight_decay,
                "variant": variant,
                "maximize": maximize,
                "backend": backend,
                "foreach": foreach,
                "fused": fused,
                "differentiable": differentiable,
                "capturable": capturable,
                "state_format": state_format,
                "weight_format": weight_format,
                "min_coded_numel": min_coded_numel,
                "seed": seed,
            },
        )
        self.track_bound(every)

    def track_bound(self, every: int = EVERY) -> None:
        """Has every ``every``-th step, this next one first, show what the bound does to it.

        Such a step reads the states once more, behind the step itself; the steps between are what
        they are without. What is seen waits on the device until ``bound_stats()``. Replays of a
        CUDA graph are all seen if the step that was captured was to be, else none is.

        Args:
            every: steps from one that is seen to the next; 0 turns it off. Default: 100.

        Raises:
            TypeError, ValueError: ``every`` is no whole number >= 0.
        """
        self._tracker = BoundTracker(every_of(every), self._tracker.looks)

    @property
    def bound_looks(self) -> int:
        """How many steps were to be seen so far: rises when ``bound_stats()`` may have news.

        It is known to the host, so that it can be asked in every step. Replays of a CUDA graph,
        which the host does not see, do not raise it.
        """
        return self._tracker.looks

    def bound_stats(self, by: str = "tensor", after: int = 0) -> list[dict[str, Any]]:
        """What the bound did in the last step that was seen; waits for the device.

        Of DTensors, what this rank holds. A step that a loss scale's overflow skipped is not seen.
        A step in ``torch.compile`` runs outside of the graph while the bound is tracked.

        Args:
            by: ``"tensor"`` or ``"group"``: what there is a row for. Default: "tensor".
            after: a ``bound_looks`` of before: steps that were counted by then give no rows, so
                that each is handed out once. Default: 0.

        Returns:
            A list of rows, empty before the first such step; ``pandas.DataFrame`` takes it as it
            is. A row is a dict: ``step``, ``group``, ``index`` of the parameter in its group,
            ``name`` (where the optimizer was given named parameters; of several alike with group
            and index behind it), ``numel``, ``lr``;
            ``bounded``: the share of elements whose rate the bound cut, s < eta, in 0..1;
            ``rate_min``, ``rate_max``, ``rate_mean`` of eta, Adam's learning rate of each element,
            and ``rate_hist``, its histogram; ``bounded_rate_...``: the same of min(eta, s);
            ``grad_norm`` (of the gradients as the step used them, unscaled and clipped),
            ``update_norm`` (of the step without its weight decay); ``dead``: elements that never
            had a gradient, exp_avg_sq = 0; ``nonfinite``: elements whose gradient or update is
            inf or NaN, which count nowhere else. Histograms are 64 counts, of the bins between
            ``adamod_fused.bound_stats.HISTOGRAM_EDGES``. States in few bits are seen as they are
            stored.

        Raises:
            RuntimeError: the bound is not tracked.
            ValueError: another ``by``.
        """
        return self._tracker.rows(by, after)
