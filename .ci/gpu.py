"""`make gpu`: builds the package with what this machine has, runs the GPU tests, leaves a record.

Offline: nothing is fetched from a network. The package is built and installed into build/gpu/site,
which the tests import; the environment of python3 is not touched. The record is a JSON file with
the versions, the GPU, the commit, the outcome of every test and a first timing; it is written
whatever happens, before --minutes are over. The exit code says whether all tests passed.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import gpu_machine

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "gpu"
SITE = WORK / "site"

TIMING_SECONDS = 75  # kept free for the timing after the tests
RECORD_SECONDS = 5  # and for the record after the timing


def finish(command, env, seconds):
    """The exit code of a command; None where time ran out and it was killed, children and all."""
    process = subprocess.Popen(command, cwd=ROOT, env=env, start_new_session=True)
    try:
        return process.wait(timeout=max(seconds, 1))
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def build(versions, capability, seconds):
    """Installs the package, CUDA engine and all, into SITE."""
    env = {"ADAMOD_CUDA_ARCHS": capability.replace(".", "")} | os.environ | {"ADAMOD_CUDA": "1"}
    if versions["pybind11"] is None:  # torch carries pybind11's headers; nothing else of it is used
        paths = [str(gpu_machine.torch_folder() / "include"), os.environ.get("CPATH", "")]
        env["CPATH"] = os.pathsep.join(filter(None, paths))
    shutil.rmtree(SITE, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--target", SITE]
    command += ["--no-build-isolation", ROOT]
    return finish(command, env, seconds)


def run(*command, seconds, **variables):
    """Finishes a Python command that imports the package from SITE."""
    paths = [str(SITE), str(ROOT / ".ci"), os.environ.get("PYTHONPATH", "")]
    # PYTHONSAFEPATH: in the checkout the package without the build must not come first.
    env = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONSAFEPATH": "1"} | variables
    return finish([sys.executable, *command], os.environ | env, seconds)


def test_files():
    """Those with tests for a GPU: others may import packages that are not here."""
    gpu_tests = re.compile(r"\bmark\.gpu\b|\bkernel\b")  # conftest.py marks by the fixture `kernel`
    files = sorted((ROOT / "tests").glob("test_*.py"))
    return [str(file.relative_to(ROOT)) for file in files if gpu_tests.search(file.read_text())]


def run_tests(arguments, seconds):
    """pytest's exit code and the outcome and seconds of every test that ended."""
    outcomes = WORK / "outcomes.jsonl"
    running = outcomes.with_suffix(".running")
    for file in (outcomes, running):
        file.unlink(missing_ok=True)
    options = ["-m", "gpu", "-p", "gpu_outcomes", "--continue-on-collection-errors", *arguments]
    command = ["-m", "pytest", *options, *test_files()]
    status = run(*command, seconds=seconds, GPU_OUTCOMES=str(outcomes))
    lines = outcomes.read_text().splitlines() if outcomes.exists() else []
    tests = [json.loads(line) for line in lines]
    if status is None:
        test = running.read_text() if running.exists() else "before the first test"
        message = f"was running when {max(seconds, 1):.0f} seconds were over"
        tests.append({"test": test, "outcome": "error", "seconds": None, "message": message})
    return status, tests


def run_timing(seconds):
    timing = WORK / "timing.json"
    timing.unlink(missing_ok=True)
    status = run("bench/gpu_first_timing.py", "--out", str(timing), seconds=seconds)
    measured = json.loads(timing.read_text()) if timing.exists() else {}
    return {"exit_code": status, **measured}


def write(record, folder):
    stamp = re.sub(r"\W", "", record["date"].removesuffix("+00:00"))
    gpu = re.sub(r"\W+", "-", record["gpu"]).lower()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"gpu-tests-{gpu}-{stamp}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--minutes", type=float, default=8, help="time for everything")
    parser.add_argument("--commit", help="of these sources, where there is no repository")
    parser.add_argument("pytest", nargs="*", help="options for pytest, after --")
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes

    def left(reserve):
        return end - time.monotonic() - reserve

    versions = gpu_machine.versions()
    missing = list(gpu_machine.what_is_missing(versions))
    if missing:
        sys.exit("\n  ".join(["make gpu: missing here:", *missing]) + gpu_machine.HOW_TO_CARRY)
    for name in (name for name in gpu_machine.OPTIONAL if versions[name] is None):
        print(f"make gpu: no {name} here; what needs it is skipped or done without", flush=True)

    WORK.mkdir(parents=True, exist_ok=True)
    record = gpu_machine.facts(versions, arguments.commit) | {"built": False, "tests_passed": False}
    try:
        start = time.monotonic()
        record["built"] = build(versions, record["compute_capability"], left(0) / 2) == 0
        record["build_seconds"] = round(time.monotonic() - start, 1)
        if record["built"]:
            reserve = TIMING_SECONDS + RECORD_SECONDS
            record["pytest_exit_code"], record["tests"] = run_tests(arguments.pytest, left(reserve))
            outcomes = [test["outcome"] for test in record["tests"]]
            record["outcomes"] = {outcome: outcomes.count(outcome) for outcome in set(outcomes)}
            record["tests_passed"] = record["pytest_exit_code"] == 0 and "passed" in outcomes
            record["timing"] = run_timing(left(RECORD_SECONDS))
    finally:
        path = write(record, arguments.out)
        print(f"make gpu: {record.get('outcomes', 'no test ran')}; record: {path}", flush=True)
    sys.exit(0 if record["tests_passed"] else 1)


if __name__ == "__main__":
    main()
