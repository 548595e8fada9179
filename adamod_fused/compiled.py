"""What ``step()`` is to torch.compile: one call of the rule's operator for each param group.

Nothing of the compiled table is traced: it checks addresses, which a graph does not have.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.symbolic_convert import InstructionTranslator

from .formats import LIVE, PLAIN
from .lists import BESIDE
from .optimizer import FusedOptimizer

# In place, which is where the tracer looks for it: the answer is built into the graph.
torch.compiler.assume_constant_result(FusedOptimizer._is_traceable)  # type: ignore[no-untyped-call, unused-ignore]


def step(optimizer: FusedOptimizer) -> None:
    """Steps every parameter that has a gradient; to be traced."""
    if optimizer._is_controlled() or not optimizer._is_traceable():
        outside_of_the_graph(optimizer._step_eagerly)
        return
    names = optimizer._hyperparameter_names
    state_names = (*optimizer.rule.states, "step")
    num_params = 0  # of the groups before
    for group in optimizer.param_groups:
        numbered = enumerate(group["params"], num_params)
        due = [(i, param) for i, param in numbered if param.grad is not None]
        num_params += len(group["params"])
        params = [param for _, param in due]
        states = [optimizer.state[param] for param in params]
        if not all(states):  # made while a step is traced, when these gradients were not there
            raise RuntimeError(
                "a graph that makes gradients and steps with them needs the states to be there; "
                "let the optimizer do one step that is not compiled before"
            )
        if params:
            operator, coding = optimizer.operator, {}
            if (group["state_format"], group["weight_format"]) != PLAIN:
                operator = optimizer.coded_operator
                coding = _coding(group, states, [i for i, _ in due])
            with torch.no_grad():
                operator(
                    params,
                    [param.grad for param in params],
                    *([entries[name] for entries in states] for name in state_names),
                    **{name: as_operand(group[name]) for name in names},
                    **coding,
                    backend=group["backend"],
                    fused=bool(group["fused"]),
                )


def _coding(
    group: dict[str, Any], states: list[dict[str, Any]], ordinals: list[int]
) -> dict[str, Any]:
    """What the operator for all formats takes more of a param group than the plain one."""
    beside = {
        name: [entries[entry] for entries in states if entry in entries]
        for entry, name in BESIDE.items()
    }
    live = {name: group[name] for name in LIVE}
    return {**beside, **live, "seed": _as_int64(group["seed"]), "ordinals": ordinals}


def _as_int64(seed: int) -> int:
    """What equals ``seed`` modulo 2^64, of which keys are made, and fits into a schema's int."""
    return (seed + (1 << 63)) % (1 << 64) - (1 << 63)


def let_graph_forget(optimizer: FusedOptimizer) -> None:
    """Has the graph that is being traced let go of an optimizer's tensors when that is freed.

    Dynamo builds parameters into the graph's module, which only the garbage collector frees. For
    torch's own optimizers it does this itself, when they call ``_init_group``.
    """
    output = InstructionTranslator.current_tx().output
    context, known = output.tracing_context, weakref.ref(optimizer)

    def prepare(graph: torch.fx.GraphModule) -> None:
        found = known()
        if found is not None:
            owned = {id(tensor) for tensor in _tensors_of(found)}
            held = (graph._parameters, graph._buffers)
            names = [
                (tensors, name)
                for tensors in held
                for name, tensor in tensors.items()
                if id(tensor) in owned
            ]
            weakref.finalize(found, _forget, names, context)

    output.add_graph_finalizer(prepare)


def _tensors_of(optimizer: FusedOptimizer) -> Iterator[Any]:
    yield from chain.from_iterable(group["params"] for group in optimizer.param_groups)
    yield from chain.from_iterable(entries.values() for entries in optimizer.state.values())


def _forget(names: Sequence[tuple[dict[str, Any], str]], context: Any) -> None:
    for tensors, name in names:
        tensors.pop(name, None)
    for attribute in ("params_flat", "params_flat_unwrap_subclasses"):
        flat = getattr(context, attribute, None)
        if flat:
            flat.clear()


@torch.compiler.disable  # type: ignore[untyped-decorator, unused-ignore]
def outside_of_the_graph(method: Callable[..., Any], *arguments: Any) -> Any:
    """What eager does, by a method of the optimizer; the graph breaks here."""
    return method(*arguments)


def as_operand(value: Any) -> Any:
    """A hyperparameter as the rule's operator takes it."""
    if isinstance(value, (Tensor, bool, str)):
        return value
    if isinstance(value, (tuple, list)):
        return [as_operand(item) for item in value]
    # A product, since a tracer that meets torch.tensor(value) compiles anew for every value; with
    # a product it takes a number that has changed once for an input of the graph.
    return torch.ones((), dtype=torch.float64, device="cpu") * value
