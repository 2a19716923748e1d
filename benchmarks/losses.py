"""Batches of 4096, against pytorch-metric-learning's SupCon on the same batch.

Decisions: every side runs in its own processes, forward and backward on one thread, and the processes of the sides take
turns. That library has no ADD loss, so ADD is compared with the same SupCon.
"""

import importlib.util

from benchmarks.row import PEAK_MEMORY, Row, Setting, in_a_new_process

ROWS_IN_BATCH, DIM = 4096, 256
_SCRIPT = (
    PEAK_MEMORY
    + """
import time, torch
side, batch, dim = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
draw = torch.Generator().manual_seed(0)
embeddings = torch.randn(batch, dim, generator=draw, requires_grad=True)
labels = torch.randint(4, (batch,), generator=draw)
if side == "theirs":
    from pytorch_metric_learning.losses import SupConLoss
    loss = SupConLoss(temperature=0.1)
elif side == "supcon":
    from laennec.losses import SupConLoss
    loss = lambda x, y: SupConLoss(0.1)(x, y)["supcon"]
else:
    from laennec.losses import AngularDistanceDistributionLoss
    loss = lambda x, y: sum(AngularDistanceDistributionLoss()(x, y).values())
loss(embeddings[:1100], labels[:1100]).backward()  # what is loaded when first used is no part of it
begin()
best = float("inf")
for _ in range(3):
    embeddings.grad = None
    since = time.perf_counter()
    loss(embeddings, labels).backward()
    best = min(best, time.perf_counter() - since)
print(best, peak())
"""
)
_NAMES = {"supcon": "SupCon", "add": "ADD"}
# bounds of time and of memory
_BOUNDS = {"supcon": ("<= 0.5", "<= 0.5"), "add": ("<= 1.0", "<= 0.5")}


def large_batches(setting: Setting) -> list[Row]:
    """Time and peak memory of forward and backward of SupCon and ADD."""
    theirs = importlib.util.find_spec("pytorch_metric_learning") is not None
    sides = ["supcon", "add", *(["theirs"] if theirs else [])]
    best = {side: (float("inf"), float("inf")) for side in sides}
    for _ in range(setting.repeats):
        for side in sides:
            seconds, megabytes = in_a_new_process(_SCRIPT, side, str(ROWS_IN_BATCH), str(DIM))
            best[side] = min(best[side][0], seconds), min(best[side][1], megabytes)
    note = f"forward and backward of {ROWS_IN_BATCH} x {DIM}, one thread; against SupConLoss of pytorch-metric-learning"
    if not theirs:
        note += ", not measured here: it is not installed (pip install pytorch-metric-learning)"
    rows = []
    for side, name in _NAMES.items():
        for place, (what, unit) in enumerate((("", "s"), (", memory", "MB"))):
            ours, other = best[side][place], best["theirs"][place] if theirs else None
            ratio = None if other is None else ours / other
            bound = _BOUNDS[side][place]
            rows.append(Row(f"{name} of a large batch{what}", ours, other, unit, ratio, bound, note))
    return rows
