"""What nvcc makes of the CUDA kernels for coded states and weights; see test_machine_code.py.

Each stream is loaded and stored once in the loop over groups, 128 bits at a time, and once in the
loop over blocks, an element a lane.
"""

from __future__ import annotations

import re
from collections import Counter

import pytest
from coded_batches import FORMATS, STATE_BYTES
from test_machine_code import (
    ARITHMETIC,
    ITEMSIZES,
    MOST_SPILLED_BY_A_LOOK,
    RULES,
    merged,
    or_skip,
)

from bench import machine_code
from bench.machine_code import ARCHS, Kernel

pytestmark = pytest.mark.build

STORAGE = {"float32": "Float32", "bfloat16": "BFloat16", "float16": "Float16"}
KERNELS = sorted(
    Kernel(
        rule,
        STORAGE[dtype] if weights == "plain" else "",
        table,
        "coded_step",
        weights.title(),
        str(STATE_BYTES[states]),
    )
    for rule in RULES
    for dtype, states, weights in FORMATS
    for table in ("Value", "Address")
)

# Instructions of the loop over groups per element, the most with nvcc 13.0, and 5 % for another
# compiler's taste. About six of them are calls for rare operands, which others pass over.
MOST_INSTRUCTIONS = {
    ("Plain", "1"): 134.9 * 1.05,
    ("Plain", "2"): 138.0 * 1.05,
    ("Split", "1"): 142.5 * 1.05,
    ("Split", "2"): 145.7 * 1.05,
    ("Split", "4"): 67.2 * 1.05,
    ("Stochastic", "1"): 149.2 * 1.05,
    ("Stochastic", "2"): 152.2 * 1.05,
    ("Stochastic", "4"): 83.2 * 1.05,
}
# sm_75 rounds to bfloat16 with integer instructions.
MOST_INSTRUCTIONS_OF = {("75", "BFloat16"): 152.7 * 1.05}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    archs = or_skip(machine_code.known_archs)
    folder = tmp_path_factory.mktemp("machine_code_coded")
    return machine_code.compile_all(folder, archs, "cuda_coded.cu")


@pytest.fixture(scope="module")
def sass(compiled):
    listing = merged(or_skip(machine_code.sass, target) for target in compiled[0])
    return {key: machine_code.instructions(lines) for key, lines in listing.items()}


@pytest.fixture(scope="module")
def ptx(compiled):
    return merged(or_skip(machine_code.ptx, target) for target in compiled[0])


def kernels_of(listing, arch):
    found = {kernel: entry for (a, kernel), entry in listing.items() if a == arch}
    if not found:
        pytest.skip(f"this nvcc does not know sm_{arch}")
    found = {kernel: entry for kernel, entry in found.items() if kernel.name == "coded_step"}
    assert sorted(found) == KERNELS
    return found


def sizes(kernel):
    """Bytes of a parameter, of a state, of a remainder, and elements of a group."""
    param = ITEMSIZES[kernel.storage or "BFloat16"]
    state = int(kernel.state_bytes)
    return param, state, 2 if kernel.weights == "Split" else 0, 16 // min(param, state)


@pytest.mark.parametrize("arch", ARCHS)
def test_no_spill_and_no_stack(compiled, arch):
    for kernel, used in kernels_of(machine_code.usage(compiled[1]), arch).items():
        assert (used.stack, used.spilled) == (0, 0), kernel


@pytest.mark.parametrize("arch", ARCHS)
def test_a_look_spills_next_to_nothing(compiled, arch):
    found = machine_code.usage(compiled[1]).items()
    looks = {kernel: used for (a, kernel), used in found if (a, kernel.name) == (arch, "observe")}
    if not looks:
        pytest.skip(f"this nvcc does not know sm_{arch}")
    assert {kernel.table for kernel in looks} == {"Value", "Address"}
    for kernel, used in looks.items():
        assert max(used.stack, used.spilled) <= MOST_SPILLED_BY_A_LOOK, kernel


@pytest.mark.parametrize("arch", ARCHS)
def test_every_stream_is_loaded_and_stored_once(sass, arch):
    for kernel, code in kernels_of(sass, arch).items():
        param, state, remainder, group = sizes(kernel)
        states = [state] * RULES[kernel.rule]["states"]
        remainders = [remainder] if remainder else []
        expected = Counter()
        for kind, itemsizes in (
            ("LDG", [param, param, *states, *remainders]),
            ("STG", [param, *states, *remainders]),
        ):
            for size in itemsizes:
                expected[kind, 128] += group * size // 16
                expected[kind, 8 * size] += 1
            if state < 4:
                expected[kind, 8] += 2 * len(states)  # the exponents, in either loop
        expected["LDG", 32] += 2  # the step's control, where there is one
        if kernel.table == "Address":
            expected["LDG", 64] += 1  # first_chunk, in the search
            expected["LDG", 64] += 5 + len(states)  # the row's words that this rule has a use for
            is_random = state < 4 or kernel.weights == "Stochastic"
            expected["LDG", 64] += (state < 4) + bool(remainder)
            expected["LDG", 64] += 2 * is_random  # the first index and the key
            expected["LDG", 32] += RULES[kernel.rule]["scalars"] + is_random  # the step
        assert machine_code.accesses(code) == expected, kernel


@pytest.mark.parametrize("arch", ARCHS)
def test_a_thread_waits_once_for_all_loads_of_a_group(sass, arch):
    for kernel, code in kernels_of(sass, arch).items():
        loop = machine_code.vector_loop(code)
        waits = [i for i, line in enumerate(loop) if re.search(r"\b(MUFU|STG)\b", line.text)]
        late = machine_code.accesses(loop[waits[0] :])
        assert not late["LDG", 128] + late["LDG", 8], kernel


@pytest.mark.parametrize("arch", ARCHS)
def test_instructions_per_element(sass, arch):
    for kernel, code in kernels_of(sass, arch).items():
        usual = MOST_INSTRUCTIONS[kernel.weights, kernel.state_bytes]
        most = MOST_INSTRUCTIONS_OF.get((arch, kernel.storage), usual)
        group = sizes(kernel)[-1]
        assert len(machine_code.vector_loop(code)) <= most * group, kernel


@pytest.mark.parametrize("arch", ARCHS)
def test_every_operation_is_rounded_once(ptx, arch):
    for kernel, lines in kernels_of(ptx, arch).items():
        arithmetic = Counter(found[0] for found in re.findall(ARITHMETIC, "\n".join(lines)))
        elements = sizes(kernel)[-1] + 1  # a group in one loop, one in the other
        operations = dict(RULES[kernel.rule]["operations"])
        if int(kernel.state_bytes) < 4:
            operations["mul"] += 2  # the threshold under which exp_avg becomes zero
        expected = {f"{name}.rn.f32": elements * count for name, count in operations.items()}
        assert arithmetic == expected, kernel
