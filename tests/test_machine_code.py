"""What nvcc makes of the CUDA engine, read from its output: no GPU needed, only the compiler.

One pass over memory is a claim about machine code: in every kernel each stream is loaded and
stored once, 128 bits at a time, and besides the table and the step's control nothing else is. One
rounding per operation is a claim about PTX: ptxas may fuse a multiplication with an addition only
where neither names its rounding, as ``.rn`` does (PTX ISA, add and mul of floating point). In
machine code it could not be told: the exact division and square root are themselves made of fused
instructions.

Speed is not told by machine code, but what it rests on is: how much a thread has to do for an
element, and how many bytes all resident threads wait for at once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from itertools import product

import pytest

from bench import kernels, machine_code
from bench.machine_code import ARCHS, Kernel
from bench.occupancy import NEEDED_IN_FLIGHT

pytestmark = pytest.mark.build

# Of each rule: how many states and scalars it has, and what is computed for one element, the
# product with the step's grad_scale among it.
RULES = {
    "AdaMod": {
        "states": 3,
        "scalars": 12,  # of them; the step is for codes alone
        "operations": {"mul": 13, "add": 5, "sub": 1, "div": 1, "sqrt": 1},
    },
}
ITEMSIZES = kernels.ITEMSIZES
KERNELS = sorted(
    [Kernel(*names) for names in product(RULES, ITEMSIZES, ("Value", "Address"))]
    + [Kernel(rule, "", "", "prepare") for rule in RULES]
    + [Kernel(rule, "", table, "observe") for rule in RULES for table in ("Value", "Address")]
    + [Kernel("", *names, "segments") for names in product(ITEMSIZES, ("Value", "Address"))]
    + [Kernel("", "", "", "total")]
)

# Instructions of the vector loop per element, the most on any architecture with nvcc 13.0, and 5 %
# for another compiler's taste. One is the product with grad_scale; it added 1.0 to all, but up to
# 1.5 on sm_75. One is the sum of weight decay and update, under a predicate that is the same for
# all elements; it added 2.0 at most. To bfloat16 sm_75 rounds with integer instructions.
MOST_INSTRUCTIONS = {"Float32": 57.8 * 1.05, "Float16": 58.9 * 1.05, "BFloat16": 58.2 * 1.05}
MOST_INSTRUCTIONS_OF = {("75", "BFloat16"): 72.7 * 1.05}

ARITHMETIC = r"\b((add|sub|mul|div|sqrt|fma|mad|rcp|rsqrt)(\.\w+)*\.f(16|32|64)(x2)?)\b"


def or_skip(find: Callable, *arguments):
    """Calls what needs a program that may not be here, or may be older than nvcc."""
    try:
        return find(*arguments)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    except RuntimeError as error:
        if "Cannot decode architecture" in str(error):  # an old Triton's nvdisasm
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """The object files of the engine, and ptxas's messages."""
    archs = or_skip(machine_code.known_archs)
    return machine_code.compile_all(tmp_path_factory.mktemp("machine_code"), archs)


def merged(listings):
    return {key: lines for listing in listings for key, lines in listing.items()}


@pytest.fixture(scope="session")
def sass(compiled):
    listing = merged(or_skip(machine_code.sass, target) for target in compiled[0])
    return {key: machine_code.instructions(lines) for key, lines in listing.items()}


@pytest.fixture(scope="session")
def ptx(compiled):
    return merged(or_skip(machine_code.ptx, target) for target in compiled[0])


@pytest.fixture(scope="session")
def resources(compiled, sass, ptx):
    return kernels.resources(sass, ptx, machine_code.usage(compiled[1]))


def kernels_of(listing, arch, name="step"):
    """Those of a name; with None all kernels."""
    found = {kernel: entry for (a, kernel), entry in listing.items() if a == arch}
    if not found:
        pytest.skip(f"this nvcc does not know sm_{arch}")
    wanted = [kernel for kernel in KERNELS if name in (kernel.name, None)]
    found = {kernel: entry for kernel, entry in found.items() if name in (kernel.name, None)}
    assert sorted(found) == wanted
    return found


# Bytes that a look, whose kernel is for all formats at once, may put aside around the calls for
# rare operands; nvcc 13.0 takes up to 12 on some architectures.
MOST_SPILLED_BY_A_LOOK = 16


@pytest.mark.parametrize("arch", ARCHS)
def test_no_spill_and_no_stack(compiled, arch):
    for kernel, used in kernels_of(machine_code.usage(compiled[1]), arch, None).items():
        most = MOST_SPILLED_BY_A_LOOK if kernel.name == "observe" else 0
        assert max(used.stack, used.spilled) <= most, kernel


@pytest.mark.parametrize("arch", ARCHS)
def test_every_stream_is_loaded_and_stored_once(sass, arch):
    for kernel, code in kernels_of(sass, arch).items():
        itemsize = ITEMSIZES[kernel.storage]
        group = 16 // itemsize
        states = [4] * RULES[kernel.rule]["states"]
        expected = Counter()
        for kind, itemsizes in (
            ("LDG", [itemsize, itemsize, *states]),
            ("STG", [itemsize, *states]),
        ):
            for size in itemsizes:
                expected[kind, 128] += group * size // 16  # in the body
                expected[kind, 8 * size] += 1  # in the loop over single elements
        expected["LDG", 32] += 2  # the step's control, where there is one
        if kernel.table == "Address":
            expected["LDG", 64] += 1  # first_chunk, in the search
            expected["LDG", 64] += 5 + len(states)  # the row's words that this rule has a use for
            expected["LDG", 32] += RULES[kernel.rule]["scalars"]
        assert machine_code.accesses(code) == expected, kernel


@pytest.mark.parametrize("arch", ARCHS)
def test_a_thread_waits_once_for_all_loads_of_a_vector(sass, arch):
    """No load of the loop comes after its first store or its first use of the slow unit."""
    for kernel, code in kernels_of(sass, arch).items():
        loop = machine_code.vector_loop(code)
        waits = [i for i, line in enumerate(loop) if re.search(r"\b(MUFU|STG)\b", line.text)]
        assert not machine_code.accesses(loop[waits[0] :])["LDG", 128], kernel


@pytest.mark.parametrize("arch", ARCHS)
def test_instructions_per_element(resources, arch):
    for kernel, found in kernels_of(resources, arch).items():
        usual = MOST_INSTRUCTIONS[kernel.storage]
        most = MOST_INSTRUCTIONS_OF.get((arch, kernel.storage), usual)
        assert found.instructions_per_element <= most, kernel
        assert found.elements == 16 // ITEMSIZES[kernel.storage]


@pytest.mark.parametrize("arch", ARCHS)
def test_enough_bytes_in_flight(resources, arch):
    for kernel, found in kernels_of(resources, arch).items():
        assert found.bytes_in_flight >= NEEDED_IN_FLIGHT[arch] << 10, (kernel, found)


@pytest.mark.parametrize("arch", ARCHS)
def test_every_operation_is_rounded_once(ptx, arch):
    for kernel, lines in kernels_of(ptx, arch).items():
        arithmetic = Counter(found[0] for found in re.findall(ARITHMETIC, "\n".join(lines)))
        elements = 16 // ITEMSIZES[kernel.storage] + 1  # a group in the body, one in the other loop
        operations = RULES[kernel.rule]["operations"].items()
        expected = {f"{name}.rn.f32": elements * count for name, count in operations}
        assert arithmetic == expected, kernel


@pytest.mark.parametrize("arch", ARCHS)
def test_scalars_are_prepared_in_float64_and_rounded_once(ptx, arch):
    """A reciprocal is 1 over something: with .rn it is as exact as any division."""
    operations = {"add.rn.f32"}  # the count
    operations |= {f"{name}.rn.f64" for name in ("add", "sub", "mul", "div", "sqrt", "rcp")}
    for kernel, lines in kernels_of(ptx, arch, "prepare").items():
        found = {operation[0] for operation in re.findall(ARITHMETIC, "\n".join(lines))}
        assert found <= operations, kernel
        assert "sqrt.rn.f64" in found, kernel


@pytest.mark.parametrize("arch", ARCHS)
def test_the_sum_of_squares_waits_once_for_each_batch(sass, arch):
    """Loads of the next batch stand before the first addition of the one at hand."""
    for kernel, code in kernels_of(sass, arch, "segments").items():
        itemsize = ITEMSIZES[kernel.storage]
        wide, rounds = ("LDG", 4 * 8 * itemsize), 64 // (4 * itemsize)
        batches = [
            loop for loop in machine_code.loops(code) if machine_code.accesses(loop)[wide] == rounds
        ]
        # Of 16 bits a segment is two batches, whose loop a compiler may do without.
        assert batches or itemsize == 2, kernel
        for loop in batches:
            first = next(i for i, line in enumerate(loop) if re.search(r"\bD(FMA|ADD)", line.text))
            assert not machine_code.accesses(loop[first:])[wide], kernel


@pytest.mark.parametrize("arch", ARCHS)
def test_sums_are_kept_in_float64(ptx, arch):
    """A square is exact, so that adding it by a fused operation rounds once, as adding it does."""
    for name, allowed in (("segments", {"fma.rn.f64", "add.rn.f64"}), ("total", {"add.rn.f64"})):
        for kernel, lines in kernels_of(ptx, arch, name).items():
            found = {operation[0] for operation in re.findall(ARITHMETIC, "\n".join(lines))}
            assert found == allowed, kernel


@pytest.mark.parametrize("arch", ARCHS)
def test_a_look_only_reads_and_rounds_every_operation_once(sass, ptx, arch):
    """Beside the step: rates in float32, sums in float64, and counts in shared memory."""
    for kernel, lines in kernels_of(ptx, arch, "observe").items():
        found = {operation[0] for operation in re.findall(ARITHMETIC, "\n".join(lines))}
        assert {op for op in found if op.endswith("f32")} == {
            f"{name}.rn.f32" for name in ("add", "mul", "div", "sqrt")
        }, kernel
        assert {op for op in found if op.endswith("f64")} == {"mul.rn.f64", "add.rn.f64"}, kernel
    for kernel, code in kernels_of(sass, arch, "observe").items():
        found = machine_code.accesses(code)
        stores = Counter({key: n for key, n in found.items() if key[0] == "STG"})
        assert stores == Counter({("STG", 64): 14}), kernel  # an Observed, once
        assert not any(kind in ("ATOM", "ATOMG", "RED") for kind, _ in found), kernel
