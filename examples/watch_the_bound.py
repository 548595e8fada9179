"""Watch the bound work: rates that Adam would have used, and those that AdaMod used instead.

``python watch_the_bound.py FOLDER`` keeps the log, ``python -m adamod_fused report FOLDER`` draws
it.
"""

import math
import sys
import tempfile

import torch
from torch import nn

from adamod_fused import AdaMod
from adamod_fused.tracking import RunLog, read

STEPS, EVERY, BETA3 = 300, 20, 0.98
SEEN, ROWS, WIDTH = 40, 50, 8  # ten rows of the embedding never get a gradient


def batch():
    words = torch.randint(0, SEEN, (16, 4))
    return words, (words / SEEN).sin().sum(1, keepdim=True)


def run(folder):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(ROWS, WIDTH), nn.Flatten(), nn.Linear(4 * WIDTH, 1))
    optimizer = AdaMod(model.named_parameters(), lr=1e-2, beta3=BETA3, track_bound=EVERY)
    log = RunLog(folder)
    for _ in range(STEPS):
        words, target = batch()
        loss = nn.functional.mse_loss(model(words), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        log.log(optimizer, loss=loss)
    return read(folder)


with tempfile.TemporaryDirectory() as unnamed:
    entries = run(sys.argv[1] if len(sys.argv) > 1 else unnamed)

looks = [{row["name"]: row for row in entry["rows"]} for entry in entries if "rows" in entry]
assert len(looks) == STEPS / EVERY, len(looks)
print("   step  held back  largest rate: Adam's   used  (of the last layer's weight)")
for look in looks:
    row = look["2.weight"]
    largest = f"{row['rate_max']:20.3g} {row['bounded_rate_max']:6.3g}"
    print(f"{row['step']:7} {row['bounded']:10.0%} {largest}")

first, last = looks[0]["2.weight"], looks[-1]["2.weight"]
assert first["bounded"] == 1, "the bound holds back every element of the first step"
assert math.isclose(first["bounded_rate_max"], (1 - BETA3) * first["rate_max"], rel_tol=1e-5)
assert last["bounded_rate_max"] > 0.8 * last["rate_max"], "and then follows: a warm-up"
assert looks[-1]["0.weight"]["dead"] == (ROWS - SEEN) * WIDTH
losses = [entry["loss"] for entry in entries]
assert sum(losses[-20:]) < 0.5 * sum(losses[:20]), (losses[0], losses[-1])
