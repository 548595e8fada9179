"""A first timing on a GPU: AdaMod's step beside torch's fused Adam, and the device's copy speed.

Times come from CUDA events around each step, all queued behind a sleep, so that they hold the
device's work and none of the host's; the host's own time per step stands beside them. Before any
timing the CUDA and Triton backends have to agree bit for bit. Writes JSON to --out after each part.
"""

import argparse
import json
import statistics
import time
from itertools import pairwise
from pathlib import Path

import torch

from adamod_fused import AdaMod, backends

DEVICE = "cuda"
ROUNDS = 5
STEPS = 10  # of each optimizer in each round
LONG = 200_000_000  # GPU cycles, a tenth of a second
COPY_BYTES = 4 << 30

ADAMOD_BYTES, ADAM_BYTES = 36, 28  # fp32, per parameter and step, every stream once
OPTIONS = {"lr": 1e-3, "weight_decay": 0.0}


def gpt2_shapes():
    """The 148 parameters of GPT-2 with 124 million elements."""
    norm = [(768,)] * 2
    attention = [(2304, 768), (2304,), (768, 768), (768,)]
    feed_forward = [(3072, 768), (3072,), (768, 3072), (768,)]
    return [(50257, 768), (1024, 768), *[*norm, *attention, *norm, *feed_forward] * 12, *norm]


SHAPES = {"gpt2-124m, 148 tensors": gpt2_shapes(), "one tensor of 1e9": [(1_000_000_000,)]}


def spread(values):
    ordered = sorted(values)
    return {"median": statistics.median(ordered), "min": ordered[0], "max": ordered[-1]}


def timed(work, count):
    """Device milliseconds of each of ``count`` calls, and host microseconds of each."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    torch.cuda._sleep(LONG)
    events[0].record()
    start = time.perf_counter()
    for event in events[1:]:
        work()
        event.record()
    host = (time.perf_counter() - start) / count
    torch.cuda.synchronize()
    device = [a.elapsed_time(b) for a, b in pairwise(events)]
    return device, host * 1e6


def copy_bandwidth():
    """GB/s of a device-to-device copy, bytes read plus bytes written."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=DEVICE).random_()
    target = torch.empty_like(source)
    target.copy_(source)
    times, _ = timed(lambda: target.copy_(source), 20)
    return spread([2 * COPY_BYTES / milliseconds / 1e6 for milliseconds in times])


def contestants(shapes):
    """Optimizers by name, each over parameters of its own; values and gradients are the same."""
    generator = torch.Generator(DEVICE).manual_seed(1)
    values = [torch.randn(shape, device=DEVICE, generator=generator) for shape in shapes]
    grads = [torch.randn(shape, device=DEVICE, generator=generator) for shape in shapes]

    def params():
        copies = [torch.nn.Parameter(value.clone()) for value in values]
        for param, grad in zip(copies, grads, strict=True):
            param.grad = grad
        return copies

    found = {}
    for name in ("cuda", "triton"):
        if backends.available()[name].available:
            found[f"AdaMod, {name}"] = AdaMod(params(), backend=name, **OPTIONS)
    found["torch.optim.Adam, fused"] = torch.optim.Adam(params(), fused=True, **OPTIONS)
    return found


def disagreement(optimizers):
    """Where AdaMod's backends differ in a bit, or None."""
    adamods = [o for o in optimizers if isinstance(o, AdaMod)]
    for other in adamods[1:]:
        pairs = zip(adamods[0].state.items(), other.state.items(), strict=True)
        for i, ((param, state), (twin, twin_state)) in enumerate(pairs):
            for name, tensor in {"param": param, **state}.items():
                if not torch.equal(tensor, {"param": twin, **twin_state}[name]):
                    return f"{name} of parameter {i}"
    return None


def measure(shapes):
    numel = sum(torch.Size(shape).numel() for shape in shapes)
    # p, g and the first values; then p and three states for each AdaMod, p and two for Adam.
    needed, free = numel * 4 * (2 + 4 + 4 + 3), torch.cuda.mem_get_info()[0]
    if free < needed + (1 << 30):
        return {"left_out": f"needs {needed >> 30} GiB of GPU memory, free are {free >> 30}"}
    optimizers = contestants(shapes)
    for _ in range(3):
        for optimizer in optimizers.values():
            optimizer.step()
    differing = disagreement(optimizers.values())
    if differing:
        return {"left_out": f"not timed, the CUDA and Triton backends differ: {differing}"}
    times = {name: [] for name in optimizers}
    host = {name: [] for name in optimizers}
    for _ in range(ROUNDS):
        for name, optimizer in optimizers.items():
            device, each = timed(optimizer.step, STEPS)
            times[name] += device
            host[name].append(each)
    record = {"elements": numel}
    adam = statistics.median(times["torch.optim.Adam, fused"])
    for name in optimizers:
        bytes_per_element = ADAMOD_BYTES if name.startswith("AdaMod") else ADAM_BYTES
        median = statistics.median(times[name])
        record[name] = {
            "device_ms": spread(times[name]),
            "host_us": spread(host[name]),
            "GB_per_s": numel * bytes_per_element / median / 1e6,
            "over_adam": median / adam,
        }
    return record


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    out = parser.parse_args().out
    record = {"bytes_over_adam": ADAMOD_BYTES / ADAM_BYTES, "copy_GB_per_s": copy_bandwidth()}
    out.write_text(json.dumps(record))
    print(f"copy: {record['copy_GB_per_s']['median']:.0f} GB/s", flush=True)
    for description, shapes in SHAPES.items():
        torch.cuda.empty_cache()
        record[description] = measure(shapes)
        out.write_text(json.dumps(record))
        print(f"{description}: {record[description]}", flush=True)


if __name__ == "__main__":
    main()
