"""The package as others get it: its sdist, its wheel, an editable install, and the build's errors.

Compilers that are only asked for their arguments or their failure are shell scripts, so that these
tests need no nvcc and take no time. torch is shut out of every build.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.build

ROOT = Path(__file__).resolve().parent.parent
CARRIED = ["csrc", "triton_kernels", "adamod_fused", "tests", "bench", "examples"]

# Stands in for c++ and nvcc: logs its arguments and writes what -o names.
FAKE_COMPILER = """#!/bin/sh
if [ "$1" = --list-gpu-arch ]; then
  for arch in $FAKE_ARCHS; do echo compute_$arch; done
  exit
fi
echo "$0 $*" >> "$FAKE_LOG"
case "$0 $*" in *$FAKE_FAILURE*) echo "the compiler's own message" >&2; exit 1;; esac
while [ $# -gt 0 ]; do
  if [ "$1" = -o ]; then : > "$2"; fi
  shift
done
"""


def sources(folder: Path) -> set[str]:
    """Every file that an sdist must carry, relative to the project."""
    files = (f for name in CARRIED for f in (folder / name).rglob("*") if f.is_file())
    relative = (f.relative_to(folder) for f in files if f.suffix not in (".so", ".pyc"))
    return {str(f) for f in relative if "__pycache__" not in f.parts}


def build_environment(no_torch: Path, **variables: str) -> dict[str, str]:
    """This environment, without what could steer a build, and with a torch that cannot be used."""
    steering = ("ADAMOD_", "CXX", "CXXFLAGS", "LDFLAGS", "CUDA_HOME", "PYTHONPATH")
    env = {k: v for k, v in os.environ.items() if not k.startswith(steering)}
    return env | {"PYTHONPATH": str(no_torch), "PYTHONSAFEPATH": "1"} | variables


def run(command: list[object], env: dict[str, str], cwd: Path) -> str:
    """What the command prints; fails with it when the command does."""
    done = subprocess.run(
        [str(part) for part in command],
        env=env,
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def no_torch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH in which ``import torch`` is an error."""
    folder = tmp_path_factory.mktemp("no_torch")
    (folder / "torch.py").write_text("raise RuntimeError('the build imported torch')\n")
    return folder


@pytest.fixture(scope="module")
def sdist_tree(tmp_path_factory: pytest.TempPathFactory, no_torch: Path) -> Path:
    """The sdist of this project, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    ignore = shutil.ignore_patterns(
        "*.so", "*.egg-info", "__pycache__", "build", "dist", ".*_cache"
    )
    checkout = folder / "checkout"
    checkout.mkdir()
    for path in (p for p in ROOT.iterdir() if p.name not in (".git", ".venv", "build", "dist")):
        if path.is_dir():
            shutil.copytree(path, checkout / path.name, ignore=ignore)
        else:
            shutil.copy(path, checkout)
    command = [sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", folder]
    run([*command, checkout], build_environment(no_torch, ADAMOD_CUDA="0"), folder)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extractall(folder, filter="data")
        else:  # Python before 3.10.12 and 3.11.4
            archive.extractall(folder)
    return next(p for p in folder.glob("adamod_fused-*") if p.is_dir())


@pytest.fixture(scope="module")
def wheel(sdist_tree: Path, no_torch: Path) -> Path:
    """A wheel without CUDA, built from the sdist."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", sdist_tree]
    run(command, build_environment(no_torch, ADAMOD_CUDA="0"), sdist_tree)
    return next((sdist_tree / "dist").glob("*.whl"))


def make_venv(folder: Path) -> Path:
    """A fresh environment that sees this one's packages, but none that is installed editable."""
    run([sys.executable, "-m", "venv", "--without-pip", folder], dict(os.environ), folder.parent)
    python = folder / "bin" / "python"
    purelib = sysconfig.get_path("purelib")
    here = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    Path(here, "packages_of_the_test_run.pth").write_text(purelib + "\n")
    return python


def pip_install(python: Path, *arguments: object, env: dict[str, str]) -> None:
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--no-index"]
    run([*command, "--no-deps", "--ignore-installed", *arguments], env, python.parent)


def test_sdist_carries_every_source(sdist_tree: Path) -> None:
    missing = sources(ROOT) - sources(sdist_tree)
    assert not missing
    for name in ("setup.py", "pyproject.toml", "Makefile", "README.md", "LICENSE", ".ci/run"):
        assert (sdist_tree / name).is_file(), name


def test_wheel_holds_the_package_and_nothing_else(wheel: Path, sdist_tree: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    compiled = {name for name in names if name.endswith(".so")}
    python = {name for name in sources(sdist_tree) if name.startswith("adamod_fused/")}
    triton = {n for n in sources(sdist_tree) if n.startswith("triton_kernels/")}
    python |= {f"adamod_fused/{name}" for name in triton}
    assert len(compiled) == 1
    assert next(iter(compiled)).startswith("adamod_fused/_C.")
    assert {n for n in names if ".dist-info/" not in n} - compiled == python


def test_wheel_works_outside_the_tree(wheel: Path, tmp_path: Path) -> None:
    python = make_venv(tmp_path / "venv")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    pip_install(python, wheel, env=env)
    script = """
import adamod_fused, adamod_fused.triton_kernels, torch
for module in (adamod_fused, adamod_fused.triton_kernels):
    assert module.__file__.startswith(__import__("sys").prefix), module.__file__
results = []
for backend in ("cpu", "reference"):
    param = torch.linspace(-1, 1, 1000).requires_grad_()
    optimizer = adamod_fused.AdaMod([param], lr=0.01, weight_decay=0.1, backend=backend)
    for _ in range(3):
        param.grad = param.detach().sin()
        optimizer.step()
    results.append(param.detach())
assert torch.equal(*results)
print("version", adamod_fused.__version__)
"""
    assert "version 0." in run([python, "-c", script], env, tmp_path)


def test_editable_install_finds_triton_kernels(
    sdist_tree: Path, wheel: Path, no_torch: Path, tmp_path: Path
) -> None:
    assert wheel.exists()  # its objects are in the tree: nothing is compiled again
    python = make_venv(tmp_path / "venv")
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])  # ninja
    env = build_environment(no_torch, ADAMOD_CUDA="0", PATH=path)
    pip_install(python, "--no-build-isolation", "--editable", sdist_tree, env=env)
    script = """
import adamod_fused._C as core, adamod_fused.triton_kernels.rules as rules
print(core.__file__, rules.__file__, sep="\\n")
"""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    core, rules = run([python, "-c", script], env, tmp_path).split()[-2:]
    assert Path(core).parent == sdist_tree / "adamod_fused"
    assert Path(rules).parent == sdist_tree / "triton_kernels"


class FakeToolkit:
    """Runs the build with stand-ins for c++ and nvcc."""

    def __init__(self, sdist_tree: Path, no_torch: Path, folder: Path) -> None:
        self.tree, self.no_torch, self.folder = sdist_tree, no_torch, folder
        self.log = folder / "log"
        for compiler in ("c++", "nvcc"):
            path = folder / "toolkit" / "bin" / compiler
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(FAKE_COMPILER)
            path.chmod(0o755)
        self.driver = folder / "driver"  # of NVIDIA, known by its program
        self.driver.mkdir()
        (self.driver / "nvidia-smi").touch(mode=0o755)

    def build(
        self, nvcc: bool = True, base: str = "build", **variables: str
    ) -> subprocess.CompletedProcess[str]:
        toolkit = self.folder / "toolkit"
        env = build_environment(
            self.no_torch,
            **{
                "PATH": str(self.driver),
                "CXX": str(toolkit / "bin" / "c++"),
                "CUDA_HOME": str(toolkit) if nvcc else "",
                "FAKE_ARCHS": "75 80 86 89 90 100 120",
                "FAKE_FAILURE": "never",
                "FAKE_LOG": str(self.log),
            }
            | variables,
        )
        command = [sys.executable, "setup.py", "build", "--build-base", str(self.folder / base)]
        return subprocess.run(
            command, env=env, cwd=self.tree, text=True, capture_output=True, check=False
        )

    def modules(self, base: str = "build") -> set[str]:
        built = (self.folder / base).glob("lib*/*/*.so")
        return {path.name.partition(".")[0] for path in built}


@pytest.fixture
def fake(sdist_tree: Path, no_torch: Path, tmp_path: Path) -> FakeToolkit:
    return FakeToolkit(sdist_tree, no_torch, tmp_path)


def test_flags_keep_arithmetic_ieee(fake: FakeToolkit) -> None:
    assert fake.build().returncode == 0
    commands = [line for line in fake.log.read_text().splitlines() if " -c " in line]
    assert commands
    for command in commands:
        own = {"--fmad=false", "-prec-div=true", "-prec-sqrt=true", "-ftz=false"}
        assert (own if command.endswith(".cu.o") else {"-ffp-contract=off"}) <= set(command.split())
        assert "fast" not in command


def test_cuda_is_built_where_there_are_a_driver_and_nvcc(fake: FakeToolkit) -> None:
    done = fake.build(nvcc=False)
    assert done.returncode == 0
    assert fake.modules() == {"_C"}
    assert "building the CPU engine without CUDA; ADAMOD_CUDA=1 builds" in done.stdout
    done = fake.build()
    assert done.returncode == 0
    assert fake.modules() == {"_C", "_cuda"}
    assert "building the CPU and CUDA engines; " in done.stdout
    assert "ADAMOD_CUDA=0 leaves it out" in done.stdout
    assert fake.build(ADAMOD_CUDA="0").returncode == 0
    assert fake.modules() == {"_C"}, "the module of an earlier build must not be left"


def test_the_build_folder_may_have_any_name_that_ninja_takes(fake: FakeToolkit) -> None:
    base = "a b$c:d'\u00e9"
    done = fake.build(nvcc=False, base=base)
    assert done.returncode == 0, done.stderr
    assert fake.modules(base) == {"_C"}
    refused = fake.build(nvcc=False, base="a|b")
    assert refused.returncode != 0
    assert "a ninja file cannot name" in refused.stderr


@pytest.mark.skipif(Path("/proc/driver/nvidia/version").exists(), reason="there is a driver here")
def test_without_a_driver_nvcc_alone_does_not_build_cuda(fake: FakeToolkit) -> None:
    assert fake.build(PATH="").returncode == 0
    assert fake.modules() == {"_C"}
    assert fake.build(PATH="", ADAMOD_CUDA="1").returncode == 0
    assert fake.modules() == {"_C", "_cuda"}


def gencodes(fake: FakeToolkit) -> list[str]:
    line = next(line for line in fake.log.read_text().splitlines() if "-gencode" in line)
    words = line.split()
    return [words[i + 1].split("code=")[1] for i, word in enumerate(words) if word == "-gencode"]


@pytest.mark.parametrize(
    ("known", "asked", "expected"),
    [
        ("75 80 86 87 89 90", "", "sm_75 sm_80 sm_86 sm_89 sm_90 compute_90"),
        ("80 86 89 90 100 120 130", "", "sm_80 sm_86 sm_89 sm_90 sm_100 sm_120 compute_120"),
        ("75 80 90 100", "100;90", "sm_100 sm_90 compute_100"),
        ("75 80 90 100", " 80, 75 ", "sm_80 sm_75 compute_80"),
    ],
)
def test_architectures(fake: FakeToolkit, known: str, asked: str, expected: str) -> None:
    done = fake.build(FAKE_ARCHS=known, ADAMOD_CUDA_ARCHS=asked)
    assert done.returncode == 0, done.stderr
    assert gencodes(fake) == expected.split()


@pytest.mark.parametrize(
    ("nvcc", "variables", "message"),
    [
        (False, {"ADAMOD_CUDA": "1"}, "nvcc is neither in CUDA_HOME/bin nor on PATH"),
        (False, {"ADAMOD_CUDA": "1"}, "or ADAMOD_CUDA=0"),
        (True, {"ADAMOD_CUDA": "yes"}, "ADAMOD_CUDA must be 0 or 1, or not set, got 'yes'"),
        (True, {"ADAMOD_CUDA_ARCHS": "sm_90"}, "(75;80;86;89;90;100;120), for example 80;90"),
        (True, {"ADAMOD_CUDA_ARCHS": "sm_90"}, "got 'sm_90'"),
        (True, {"ADAMOD_CUDA_ARCHS": "80;999"}, "for example 80;90, got '80;999'"),
        (True, {"ADAMOD_CUDA_ARCHS": ";"}, "for example 80;90, got ';'"),
        (True, {"FAKE_ARCHS": ""}, "ADAMOD_CUDA_ARCHS must list architectures"),
        (True, {"FAKE_FAILURE": ".cu.o"}, "the compiler's own message"),
        (True, {"FAKE_FAILURE": ".cu.o"}, "ADAMOD_CUDA=0 builds without the CUDA engine"),
        (True, {"FAKE_FAILURE": ".cu.o", "ADAMOD_CUDA": "1"}, "the compiler's own message"),
        (False, {"FAKE_FAILURE": "core.cpp.o"}, "the compiler's own message"),
        (False, {"CXX": "no-such-compiler"}, "no-such-compiler"),
    ],
)
def test_errors_name_value_and_remedy(
    fake: FakeToolkit, nvcc: bool, variables: dict[str, str], message: str
) -> None:
    done = fake.build(nvcc, **variables)
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
    assert not fake.modules()


@pytest.mark.skipif(
    not shutil.which("nvcc") and not os.environ.get("CUDA_HOME"), reason="no nvcc on PATH"
)
def test_cuda_module_needs_no_driver_and_no_cuda_library(
    sdist_tree: Path, no_torch: Path, tmp_path: Path
) -> None:
    env = build_environment(no_torch, ADAMOD_CUDA="1", ADAMOD_CUDA_ARCHS="80")
    env |= {"CUDA_HOME": os.environ.get("CUDA_HOME", "")}
    run([sys.executable, "setup.py", "build", "--build-lib", tmp_path], env, sdist_tree)
    module = next((tmp_path / "adamod_fused").glob("_cuda.*.so"))
    # The names alone: ldd prints addresses too, and hexadecimal digits may spell anything.
    listing = run(["ldd", module], dict(os.environ), tmp_path)
    libraries = {Path(line.split()[0]).name for line in listing.splitlines() if line.split()}
    assert "libstdc++.so.6" in libraries
    assert not [name for name in libraries if name.startswith(("libcuda", "libtorch", "libc10"))]
    script = "import _cuda; print(_cuda.architectures(), _cuda.__doc__)"
    printed = run([sys.executable, "-c", script], {"PYTHONPATH": str(module.parent)}, tmp_path)
    assert "80" in printed
