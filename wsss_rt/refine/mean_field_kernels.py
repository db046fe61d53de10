"""Inner loop of mean field: slice, messages, unary, softmax and the next splat in one pass over pixels."""

from __future__ import annotations

import numpy as np

from wsss_rt.jit import float_of_bits, kernel
from wsss_rt.refine.lanes import add_scaled, load, spread, store

# what a pass does
FIRST = 0
MIDDLE = 1
LAST = 2

# below this, a probability is zero: it would only make the lattice's sums denormal, which are slow
_LEAST_EXPONENT = np.float32(-60)
_LOG2_E = np.float32(1.4426950408889634)
# ln 2 in two parts, so that x - n ln 2 is exact to float32
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(-2.12194440e-4)


# pixels that go through slice, softmax and splat together: small enough for the first-level cache
_CHUNK = np.uint64(64)
# indices are unsigned: for signed ones numba adds a test for negative ones
_0, _1, _2, _3, _6 = np.uint64(0), np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(6)
_LANES = np.uint64(4)


@kernel
def _exp(x):  # type: ignore[no-untyped-def]
    """e^x for x <= 0 to 2e-7 of its value: 2^n times the Taylor series of the rest, |rest| <= ln(2)/2."""
    clipped = max(x, _LEAST_EXPONENT)
    n = np.rint(clipped * _LOG2_E)
    r = clipped - n * _LN2_HIGH - n * _LN2_LOW
    p = np.float32(1 / 720)
    p = p * r + np.float32(1 / 120)
    p = p * r + np.float32(1 / 24)
    p = p * r + np.float32(1 / 6)
    p = p * r + np.float32(1 / 2)
    p = p * r + np.float32(1)
    p = p * r + np.float32(1)
    # the exponent's field, built as a float because that is exact and stays in 32 bits
    power = p * float_of_bits(np.int32((n + np.float32(127)) * np.float32(8388608)))
    return power if x > _LEAST_EXPONENT else np.float32(0)


@kernel
def update_pixels(  # type: ignore[no-untyped-def]
    stage,
    log_p,
    vertices_s,
    weights_s,
    values_s,
    sums_s,
    vertices_b,
    weights_b,
    values_b,
    sums_b,
    labels,
    out,
    first,
):
    """One mean field update of a band's pixels; all arrays but ``log_p`` and ``out`` are flat.

    ``log_p`` (N, lanes) is minus the unary energy; ``values_*`` (lanes / 4, vertices, 4) the blurred
    marginals, read unless the stage is FIRST; ``sums_*`` gets the new marginals unless it is LAST, and then
    ``out`` (classes, all pixels) gets them from pixel ``first`` on. Suffix s: spatial kernel; b: bilateral.
    Weights carry normalisation and strength. ``labels`` (N,) gets the best lane of each pixel, and the number
    of those that changed is returned; it may be empty, which leaves that out.
    """
    changed = 0
    pixels = np.uint64(log_p.shape[0])
    lanes = np.uint64(log_p.shape[1])
    groups = lanes // _LANES
    flat = log_p.reshape(log_p.size)
    slab_s = np.uint64(values_s.size) // groups
    slab_b = np.uint64(values_b.size) // groups
    q = np.empty(_CHUNK * lanes, np.float32)
    for start in range(_0, pixels, _CHUNK):
        size = min(_CHUNK, pixels - start)
        for i in range(size):
            pixel = start + i
            top = np.float32(-3e38)
            for group in range(groups):
                new = load(flat, pixel * lanes + group * _LANES)
                if stage != FIRST:
                    for k in range(pixel * _3, pixel * _3 + _3):
                        at = group * slab_s + np.uint64(vertices_s[k]) * _LANES
                        new = add_scaled(new, weights_s[k], load(values_s, at))
                    for k in range(pixel * _6, pixel * _6 + _6):
                        at = group * slab_b + np.uint64(vertices_b[k]) * _LANES
                        new = add_scaled(new, weights_b[k], load(values_b, at))
                at = i * lanes + group * _LANES
                store(q, at, new)
                top = max(top, max(max(q[at], q[at + _1]), max(q[at + _2], q[at + _3])))
            if labels.size:
                best = np.int32(0)
                while q[i * lanes + np.uint64(best)] != top:
                    best += np.int32(1)
                changed += labels[pixel] != best
                labels[pixel] = best
            for lane in range(i * lanes, i * lanes + lanes, _LANES):
                store(q, lane, add_scaled(load(q, lane), np.float32(1), spread(-top)))
        # one plain loop over all pixels and lanes, which the compiler turns into wide vectors
        for n in range(size * lanes):
            q[n] = _exp(q[n])
        for i in range(size):
            pixel = start + i
            total = np.float32(0)
            for lane in range(i * lanes, i * lanes + lanes, _LANES):
                total += (q[lane] + q[lane + _1]) + (q[lane + _2] + q[lane + _3])
            share = np.float32(1) / total
            if stage == LAST:
                for c in range(out.shape[0]):
                    out[c, first + np.int64(pixel)] = q[i * lanes + np.uint64(c)] * share
                continue
            for group in range(groups):
                new = load(q, i * lanes + group * _LANES)
                for k in range(pixel * _3, pixel * _3 + _3):
                    at = group * slab_s + np.uint64(vertices_s[k]) * _LANES
                    store(sums_s, at, add_scaled(load(sums_s, at), share * weights_s[k], new))
                for k in range(pixel * _6, pixel * _6 + _6):
                    at = group * slab_b + np.uint64(vertices_b[k]) * _LANES
                    store(sums_b, at, add_scaled(load(sums_b, at), share * weights_b[k], new))
    return changed
