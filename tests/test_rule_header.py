"""csrc/rules/adamod.h alone: it compiles by itself, and its numbers are those of exact arithmetic.

The golden values come from rational numbers (fractions), each operation rounded by a function
written here from the definition of IEEE 754, in the order that the paper's formulas have in the
header; no floating-point unit and no code of the product takes part. A second set comes from
mpmath at 60 digits, rounded nowhere, with the bound that follows from the number of operations.
"""

from __future__ import annotations

import random
import subprocess
from fractions import Fraction
from math import isqrt
from pathlib import Path

import mpmath
import pytest

pytestmark = pytest.mark.build

ROOT = Path(__file__).resolve().parents[1]
STRICT = ["-std=c++17", "-O3", "-ffp-contract=off", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]

SCALARS = (
    *("grad_sign", "beta1", "one_minus_beta1", "beta2", "one_minus_beta2"),
    *("beta3", "one_minus_beta3", "eps", "step_size", "denom_scale", "update_scale"),
    *("weight_decay_rate", "step"),
)


@pytest.fixture(scope="module")
def rule_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("rule") / "rule"
    source = ROOT / "tests" / "native" / "rule_main.cpp"
    subprocess.run(["g++", *STRICT, str(source), "-o", str(program)], check=True)
    return program


def run_rule(program: Path, kind: str, rows: list[list[float]]) -> list[list[float]]:
    text = "\n".join(" ".join(float(x).hex() for x in row) for row in rows)
    output = subprocess.run([program, kind], input=text, capture_output=True, text=True, check=True)
    return [[float.fromhex(w) for w in line.split()] for line in output.stdout.splitlines()]


def test_header_compiles_alone(tmp_path: Path) -> None:
    header = ROOT / "csrc" / "rules" / "adamod.h"
    source = tmp_path / "alone.cpp"
    source.write_text(f'#include "{header}"\n#include "{header}"\ntemplate struct AdaMod<float>;\n')
    subprocess.run(["g++", *STRICT, "-c", str(source), "-o", str(tmp_path / "o")], check=True)


class Float:
    """A binary format: ``precision`` bits of significand, least exponent of a normal number."""

    def __init__(self, precision: int, least_exponent: int) -> None:
        self.precision, self.least_exponent = precision, least_exponent

    def spacing(self, x: Fraction) -> Fraction:
        """Between neighbours at ``x``: 2^(floor(log2 |x|) + 1 - precision), or of a subnormal."""
        exponent = x.numerator.bit_length() - x.denominator.bit_length()
        if abs(x) < Fraction(2) ** exponent:
            exponent -= 1
        return Fraction(2) ** (max(exponent, self.least_exponent) + 1 - self.precision)

    def round(self, x: Fraction) -> Fraction:
        """To nearest; Python rounds a Fraction's ties to the even integer, as IEEE 754 asks."""
        if x == 0:
            return x
        spacing = self.spacing(abs(x))
        return round(x / spacing) * spacing

    def sqrt(self, x: Fraction) -> Fraction:
        """To nearest, from the integer root of a number scaled to hold bits to spare."""
        if x == 0:
            return x
        shift = 4 * (self.precision + 100 + x.denominator.bit_length())
        root = isqrt((x.numerator << shift) // x.denominator)
        # The bits to spare end in a one where the root goes on, so that no tie is feigned.
        sticky = Fraction(1, 2) if root * root * x.denominator != x.numerator << shift else 0
        return self.round((root + sticky) / Fraction(2) ** (shift // 2))


def rounded_step(f: Float, row: list[float]) -> list[Fraction]:
    """One step of AdaMod, Ding et al., algorithm 1, with every operation rounded to format f."""
    exact = [Fraction(x) for x in row]
    s = dict(zip(SCALARS, exact, strict=False))
    param, grad, m, v, bound = exact[len(SCALARS) :]
    r = f.round
    grad = r(s["grad_sign"] * grad)
    m = r(r(s["beta1"] * m) + r(s["one_minus_beta1"] * grad))
    v = r(r(s["beta2"] * v) + r(r(s["one_minus_beta2"] * grad) * grad))
    eta = r(s["step_size"] / r(r(f.sqrt(v) * s["denom_scale"]) + s["eps"]))
    bound = r(r(s["beta3"] * bound) + r(s["one_minus_beta3"] * eta))
    update = r(r(min(eta, bound) * m) * s["update_scale"])
    if s["weight_decay_rate"] != 0:
        update = r(r(s["weight_decay_rate"] * param) + update)
    return [r(param - update), m, v, bound]


def random_rows(f: Float, count: int) -> list[list[float]]:
    """Scalars as training has them, in both variants, and elements of all magnitudes."""
    rng = random.Random(11)
    rows = []
    for _ in range(count):
        beta1, beta2, beta3 = (1 - 10 ** rng.uniform(-4, 0) for _ in range(3))
        row = [rng.choice([1, -1]), beta1, 1 - beta1, beta2, 1 - beta2, beta3, 1 - beta3]
        row += [10 ** rng.uniform(-12, -3), 10 ** rng.uniform(-6, 0)]
        row += rng.choice([[10 ** rng.uniform(0, 2), 10 ** rng.uniform(0, 1)], [1.0, 1.0]])
        row += [rng.choice([0, 10 ** rng.uniform(-8, -1)]), rng.randint(1, 2**20)]
        row += [rng.gauss(0, 1), rng.gauss(0, 1) * 10 ** rng.uniform(-8, 3)]
        row += [rng.gauss(0, 1e-2), abs(rng.gauss(0, 1)) * 10 ** rng.uniform(-14, 2)]
        row += [10 ** rng.uniform(-6, 1)]
        rows.append([float(f.round(Fraction(x))) for x in row])
    # Nothing but zeros; a gradient whose square is subnormal; a subnormal second moment.
    usual = rows[0][: len(SCALARS)]
    rows.append([*usual, 1.0, 0.0, 0.0, 0.0, 0.0])
    rows.append([*usual, 1.0, 2.0**-70, 0.0, 0.0, 0.0])
    rows.append([*usual, 1.0, 0.0, 0.0, 2.0**-140, 2.0**-10])
    return rows


@pytest.mark.parametrize(
    ("kind", "f"),
    [("float", Float(24, -126)), ("double", Float(53, -1022))],
    ids=["float", "double"],
)
def test_every_operation_rounds_once(rule_program: Path, kind: str, f: Float) -> None:
    rows = random_rows(f, 500)
    for row, got in zip(rows, run_rule(rule_program, kind, rows), strict=True):
        assert [Fraction(x) for x in got] == rounded_step(f, row), row


def test_double_is_the_papers_formula(rule_program: Path) -> None:
    """Against algorithm 1 at 60 digits, from t, lr and the betas rather than ready-made scalars."""
    rng = random.Random(12)
    u = 2.0**-53
    rows, wanted = [], []
    with mpmath.workdps(60):
        for _ in range(300):
            t, lr, decay = rng.randint(1, 20), 10 ** rng.uniform(-4, -1), rng.uniform(0, 0.2)
            b1, b2, b3, eps = rng.uniform(0.5, 0.95), rng.uniform(0.8, 0.999), 0.999, 1e-8
            p, g, m = (rng.gauss(0, 1) for _ in range(3))
            v, bound = rng.uniform(0.1, 2), lr * rng.uniform(0.01, 2)
            beta1, beta2, beta3 = map(mpmath.mpf, (b1, b2, b3))
            bc1, bc2 = 1 - beta1**t, 1 - beta2**t
            m_new = beta1 * m + (1 - beta1) * g
            v_new = beta2 * v + (1 - beta2) * mpmath.mpf(g) ** 2
            eta = lr / (mpmath.sqrt(v_new / bc2) + eps)
            bound_new = beta3 * bound + (1 - beta3) * eta
            p_new = p - mpmath.mpf(lr) * decay * p - min(eta, bound_new) * m_new / bc1
            wanted.append([p_new, m_new, v_new, bound_new])
            scalars = [1, b1, 1 - b1, b2, 1 - b2, b3, 1 - beta3, eps]
            scalars += [lr, 1 / mpmath.sqrt(bc2), 1 / bc1, mpmath.mpf(lr) * decay, t]
            rows.append([float(x) for x in (*scalars, p, g, m, v, bound)])
        for got, exact in zip(run_rule(rule_program, "double", rows), wanted, strict=True):
            for value, truth in zip(got, exact, strict=True):
                # At most 20 roundings lie between the inputs and any result, none of a value
                # above 10 for these inputs.
                assert abs(value - truth) <= 20 * u * 10
