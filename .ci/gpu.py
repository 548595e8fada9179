"""`make gpu`: builds the package with what this machine has, runs the GPU tests, leaves a record.

Offline: nothing is fetched from a network. The package is built and installed into build/gpu/site,
which the tests import; the environment of python3 is not touched. The record is a JSON file with
the versions, the GPU, the commit and the outcome of every test.
"""

import argparse
import datetime
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "gpu"
SITE = WORK / "site"

REQUIRED = ["torch", "pip", "setuptools", "pytest", "numpy"]
OPTIONAL = ["triton", "pybind11", "ninja", "hypothesis", "mpmath", "pytorch_optimizer"]


def version(name):
    """The version of an importable package, None for one that is not there."""
    if importlib.util.find_spec(name) is None:
        return None
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # on the path, but not installed by pip
        return getattr(importlib.import_module(name), "__version__", "unknown")


def output(*command):
    """What a command prints, "" when it cannot run."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def find_nvcc():
    cuda_home = os.environ.get("CUDA_HOME")
    return (cuda_home and shutil.which("nvcc", path=f"{cuda_home}/bin")) or shutil.which("nvcc")


def what_is_missing(versions):
    """One line, with the remedy, for each thing without which nothing can run."""
    if sys.version_info < (3, 11):
        yield f"Python 3.11 or newer (PYTHONSAFEPATH); {sys.executable} is {sys.version.split()[0]}"
    for name in REQUIRED:
        if versions[name] is None:
            yield f"{name}: install this package for {sys.executable}, or add it to PYTHONPATH"
    if not find_nvcc():
        yield "nvcc: put the CUDA toolkit's bin folder on PATH, or set CUDA_HOME"
    if not versions["ninja"] and not shutil.which("ninja"):
        yield "ninja: the Python package or the program on PATH"
    if not shutil.which(os.environ.get("CXX", "c++").split()[0]):
        yield "a C++ compiler: c++ on PATH, or one named in CXX"
    if versions["torch"]:
        import torch

        if not torch.cuda.is_available():
            yield f"a GPU: torch.cuda.is_available() is False (torch {torch.__version__})"


def facts(versions):
    """What a reader of the record must know about the machine and the sources."""
    import torch

    device = torch.cuda.get_device_properties(0)
    commit = output("git", "rev-parse", "HEAD")
    changes = output("git", "status", "--porcelain", "--untracked-files=no")
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit or None,  # None outside a repository
        "uncommitted_changes": bool(changes) if commit else None,
        "gpu": device.name,
        "compute_capability": f"{device.major}.{device.minor}",
        "driver": output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "nvcc": "".join(re.findall(r"V([\d.]+)", output(find_nvcc(), "--version"))),
        "torch_cuda": torch.version.cuda,
        "python": platform.python_version(),
        "versions": versions,
    }


def build(versions):
    """Installs the package, CUDA engine and all, into SITE."""
    env = os.environ | {"ADAMOD_CUDA": "1"}
    if versions["pybind11"] is None:  # torch carries pybind11's headers; nothing else of it is used
        torch_folder = Path(importlib.util.find_spec("torch").origin).parent
        paths = [str(torch_folder / "include"), os.environ.get("CPATH", "")]
        env["CPATH"] = os.pathsep.join(filter(None, paths))
    shutil.rmtree(SITE, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--target", SITE]
    subprocess.run([*command, "--no-build-isolation", ROOT], env=env, check=True)


def run_tests(arguments):
    """pytest's exit status, and the outcome and seconds of every test."""
    report = WORK / "junit.xml"
    report.unlink(missing_ok=True)
    paths = [str(SITE), os.environ.get("PYTHONPATH", "")]
    # PYTHONSAFEPATH: in the checkout the package without the build must not come first.
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "pytest", "-m", "gpu", f"--junitxml={report}", *arguments]
    status = subprocess.run(command, cwd=ROOT, env=env).returncode
    tests = []
    for case in xml.etree.ElementTree.parse(report).iter("testcase") if report.exists() else ():
        problem = next((e for e in case if e.tag in ("failure", "error", "skipped")), None)
        tests.append(
            {
                "test": f"{case.get('classname')}::{case.get('name')}",
                "outcome": "passed" if problem is None else problem.tag,
                "seconds": float(case.get("time", 0)),
                "message": "" if problem is None else problem.get("message", ""),
            }
        )
    return status, tests


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, after --")
    arguments = parser.parse_args()

    versions = {name: version(name) for name in REQUIRED + OPTIONAL}
    missing = list(what_is_missing(versions))
    if missing:
        sys.exit("\n  ".join(["make gpu: missing here:", *missing]))
    for name in (name for name in OPTIONAL if versions[name] is None):
        print(f"make gpu: no {name} here; what needs it is skipped or done without", flush=True)

    record = facts(versions)
    build(versions)
    status, tests = run_tests(arguments.pytest)
    passed = sum(test["outcome"] == "passed" for test in tests)
    record |= {"pytest_status": status, "passed": passed, "tests": tests}

    stamp = re.sub(r"\W", "", record["date"].removesuffix("+00:00"))
    gpu = re.sub(r"\W+", "-", record["gpu"]).lower()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"gpu-tests-{gpu}-{stamp}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"make gpu: {passed} of {len(tests)} passed; record: {path}")
    sys.exit(status or (0 if passed else "make gpu: no GPU test ran"))


if __name__ == "__main__":
    main()
