"""Random numbers of many cycles at once, each a function of (seed, epoch, cycle) alone.

Decisions: `uniforms` gives the very numbers that numpy's Philox generator of each cycle would, without a generator
for each. Noise on a device comes from a counter-based generator too (Philox4x32-10, then Box and Muller), so that a
sample's noise hangs on nothing else in the batch; its values are others than numpy's, and equal between devices up to
the rounding of their logarithms and cosines.

Reference: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Words = npt.NDArray[np.uint64]

_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
# multipliers and key steps of Philox4x64, then of Philox4x32
_M64 = (np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157))
_W64 = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_M32 = (0xD2511F53, 0xCD9E8D57)
_W32 = (0x9E3779B9, 0xBB67AE85)


def _product(a: np.uint64, b: Words) -> tuple[Words, Words]:
    """High and low 64 bits of the product of 64-bit words."""
    a_low, a_high, b_low, b_high = a & _LOW, a >> _HALF, b & _LOW, b >> _HALF
    low = a_low * b_low
    middle = a_high * b_low + (low >> _HALF)
    carried = a_low * b_high + (middle & _LOW)
    return a_high * b_high + (middle >> _HALF) + (carried >> _HALF), a * b


def words(seed: int, stream: int, epochs: npt.ArrayLike, indices: npt.ArrayLike, count: int) -> Words:
    """The first 64-bit words of `numpy.random.Philox(key=[seed, stream], counter=[0, epoch, index, 0])`, by row.

    Args:
        seed: Of the run.
        stream: Number of the stream.
        epochs: (rows,), not negative.
        indices: (rows,), not negative.
        count: Words of each row.

    Returns:
        (rows, count).
    """
    rows = [np.asarray(values).astype(np.uint64)[:, None] for values in (epochs, indices)]
    blocks = np.arange(1, -(-count // 4) + 1, dtype=np.uint64)[None, :]  # numpy counts on before it draws
    state = list(np.broadcast_arrays(blocks, *rows, np.uint64(0)))
    pair = [seed % 2**64, stream]
    with np.errstate(over="ignore"):
        for number in range(_ROUNDS):
            key = [np.uint64((k + number * w) % 2**64) for k, w in zip(pair, _W64, strict=True)]
            (high_0, low_0), (high_1, low_1) = _product(_M64[0], state[0]), _product(_M64[1], state[2])
            state = [high_1 ^ state[1] ^ key[0], low_1, high_0 ^ state[3] ^ key[1], low_0]
    return np.stack(state, axis=-1).reshape(len(rows[0]), -1)[:, :count]


def uniforms(drawn: Words) -> npt.NDArray[np.float64]:
    """Words as `Generator.random` makes numbers in [0, 1) of them."""
    return (drawn >> np.uint64(11)).astype(np.float64) * 2.0**-53


def uniforms_32(drawn: Words) -> npt.NDArray[np.float32]:
    """Words (rows, n) as `Generator.random(dtype=float32)` makes two numbers in [0, 1) of each: (rows, 2 n)."""
    halves = np.stack([drawn & _LOW, drawn >> _HALF], axis=-1).reshape(len(drawn), -1)
    return (halves >> np.uint64(8)).astype(np.float32) * np.float32(2.0**-24)


def normals(seeds: npt.ArrayLike, epochs: npt.ArrayLike, indices: npt.ArrayLike, samples: int, device: Any) -> Tensor:
    """Standard normal noise on a device, each sample a function of its row's numbers and of its place.

    Args:
        seeds: (rows,), of the view.
        epochs: (rows,).
        indices: (rows,), of the cycle.
        samples: How many each.
        device: Where.

    Returns:
        float32 (rows, samples).
    """
    seed, index = (np.asarray(values).astype(np.uint64) for values in (seeds, indices))
    columns = [np.asarray(epochs).astype(np.uint64) & _LOW, index & _LOW, index >> _HALF, seed & _LOW, seed >> _HALF]
    table = torch.from_numpy(np.stack(columns).astype(np.int64)).to(device)
    epoch, low, high, *key = (column[:, None] for column in table)
    block = torch.arange(-(-samples // 4), device=device)[None, :]
    state = [block, epoch, low, high]
    for number in range(_ROUNDS):
        steps = [(k + number * w) & 0xFFFFFFFF for k, w in zip(key, _W32, strict=True)]
        # the product of 32-bit words fills 64 bits, of which the sign is one
        first, second = state[0] * _M32[0], state[2] * _M32[1]
        high_0, high_1 = (first >> 32) & 0xFFFFFFFF, (second >> 32) & 0xFFFFFFFF
        state = [high_1 ^ state[1] ^ steps[0], second & 0xFFFFFFFF, high_0 ^ state[3] ^ steps[1], first & 0xFFFFFFFF]
    a, b, c, d = ((word.float() + 0.5) * 2.0**-32 for word in torch.broadcast_tensors(*state))
    radius, other = (-2 * a.log()).clamp_min(0).sqrt(), (-2 * c.log()).clamp_min(0).sqrt()
    angle, second_angle = 2 * math.pi * b, 2 * math.pi * d
    four = [radius * angle.cos(), radius * angle.sin(), other * second_angle.cos(), other * second_angle.sin()]
    return torch.stack(four, dim=-1).flatten(1)[:, :samples]
