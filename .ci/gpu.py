"""`make gpu`: builds the package with what this machine has, tests, measures, leaves records.

Offline: nothing is fetched from a network. The package is built and installed into build/gpu/site,
which everything imports; the environment of python3 is not touched. The record is a JSON file with
the versions, the GPU, the commit, the outcome of every test and what the benchmark and the trials
did; it is written whatever happens, before --minutes are over. The benchmark and the trials leave
records and figures of their own beside it. The exit code is 0 if all tests passed and no gate of
the benchmark was red.
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
from itertools import chain
from pathlib import Path

import gpu_machine

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "gpu"
SITE = WORK / "site"

# Of the time for everything: the build gets at most half of it, the tests the rest but for what is
# kept free for the benchmark. Where they leave more, the trials get their part of that.
BENCH_LEAST_SECONDS = 90
TRIALS_SECONDS = 100
RECORD_SECONDS = 5  # for the record after all
GRACE_SECONDS = 5  # for what stops by itself to do so, before it is killed
LEAST_SECONDS = 30  # with less nothing is begun

BENCHMARK = ("bench", "--device", "cuda")
TRIALS = ("bench.trials",)


def bench_seconds(left):
    """The benchmark's part of what the tests have left; the trials get the rest."""
    return max(left - TRIALS_SECONDS, min(left, BENCH_LEAST_SECONDS))


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
    # ROOT for `bench`. It holds the package without its build too, which must not come first:
    # SITE is before it, and PYTHONSAFEPATH keeps the folder that this is called in away.
    paths = [str(SITE), str(ROOT / ".ci"), str(ROOT), os.environ.get("PYTHONPATH", "")]
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


def measuring(command, out, commit, seconds):
    """A command of the benchmark, told to stop by itself before ``seconds`` are over."""
    options = ["--minutes", f"{(seconds - GRACE_SECONDS) / 60:.2f}", "--out", str(out)]
    return ["-m", *command, *options, *(["--commit", commit] if commit else [])]


def measure(command, out, commit, seconds):
    """Runs it; its exit code and the files that it wrote, or why there are none."""
    if seconds < LEAST_SECONDS:
        return {"left_out": f"{max(seconds, 0):.0f} seconds were left, {LEAST_SECONDS} are needed"}
    start, began = time.monotonic(), time.time()
    status = run(*measuring(command, out, commit, seconds), seconds=seconds)
    found = {"exit_code": status, "seconds": round(time.monotonic() - start, 1)}
    if status is None:
        found["left_out"] = "it did not stop by itself in time, and was killed"
    # A second earlier: the clock of a file system may be behind by less.
    kinds = (out.glob("bench-*"), out.glob("trials-*"))
    written = (path for path in chain(*kinds) if path.stat().st_mtime > began - 1)
    return found | {"files": sorted(path.name for path in written)}


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
            reserve = BENCH_LEAST_SECONDS + RECORD_SECONDS
            record["pytest_exit_code"], record["tests"] = run_tests(arguments.pytest, left(reserve))
            outcomes = [test["outcome"] for test in record["tests"]]
            record["outcomes"] = {outcome: outcomes.count(outcome) for outcome in set(outcomes)}
            record["tests_passed"] = record["pytest_exit_code"] == 0 and "passed" in outcomes
            place = arguments.out.resolve(), record["commit"]
            record["benchmark"] = measure(BENCHMARK, *place, bench_seconds(left(RECORD_SECONDS)))
            record["trials"] = measure(TRIALS, *place, left(RECORD_SECONDS))
    finally:
        path = write(record, arguments.out)
        print(f"make gpu: {record.get('outcomes', 'no test ran')}; record: {path}", flush=True)
        for name in ("benchmark", "trials"):
            print(f"make gpu: {name}: {record.get(name, 'not begun')}", flush=True)
    red = record.get("benchmark", {}).get("exit_code") == 1
    sys.exit(0 if record["tests_passed"] and not red else 1)


if __name__ == "__main__":
    main()
