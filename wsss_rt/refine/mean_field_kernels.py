"""Inner loop of mean field: slice, messages, unary, softmax and the next splat in one pass over pixels."""

from __future__ import annotations

import numpy as np

from wsss_rt.refine.jit import float_of_bits, kernel

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
_CHUNK = 64


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
    out,
    first,
):
    """One mean field update of a band's pixels.

    ``log_p`` (N, lanes) is minus the unary energy; ``values_*`` (vertices, lanes) the blurred marginals, read
    unless the stage is FIRST; ``sums_*`` gets the new marginals unless it is LAST, and then ``out``
    (classes, all pixels) gets them from pixel ``first`` on. Suffix s: spatial kernel; b: bilateral. Weights
    carry normalisation and strength.
    """
    pixels, lanes = log_p.shape
    q = np.empty(_CHUNK * lanes, np.float32)
    for start in range(0, pixels, _CHUNK):
        size = min(_CHUNK, pixels - start)
        for i in range(size):
            pixel = start + i
            top = np.float32(-3e38)
            for c in range(0, lanes, 4):
                q0 = log_p[pixel, c]
                q1 = log_p[pixel, c + 1]
                q2 = log_p[pixel, c + 2]
                q3 = log_p[pixel, c + 3]
                if stage != FIRST:
                    for k in range(3):
                        v = np.uint32(vertices_s[pixel, k])
                        w = weights_s[pixel, k]
                        q0 += w * values_s[v, c]
                        q1 += w * values_s[v, c + 1]
                        q2 += w * values_s[v, c + 2]
                        q3 += w * values_s[v, c + 3]
                    for k in range(6):
                        v = np.uint32(vertices_b[pixel, k])
                        w = weights_b[pixel, k]
                        q0 += w * values_b[v, c]
                        q1 += w * values_b[v, c + 1]
                        q2 += w * values_b[v, c + 2]
                        q3 += w * values_b[v, c + 3]
                at = i * lanes + c
                q[at] = q0
                q[at + 1] = q1
                q[at + 2] = q2
                q[at + 3] = q3
                top = max(top, max(max(q0, q1), max(q2, q3)))
            for c in range(0, lanes, 4):
                at = i * lanes + c
                q[at] -= top
                q[at + 1] -= top
                q[at + 2] -= top
                q[at + 3] -= top
        # one plain loop over all pixels and lanes, which the compiler turns into wide vectors
        for at in range(size * lanes):
            q[at] = _exp(q[at])
        for i in range(size):
            pixel = start + i
            total = np.float32(0)
            for c in range(0, lanes, 4):
                at = i * lanes + c
                total += (q[at] + q[at + 1]) + (q[at + 2] + q[at + 3])
            share = np.float32(1) / total
            if stage == LAST:
                for c in range(out.shape[0]):
                    out[c, first + pixel] = q[i * lanes + c] * share
                continue
            for c in range(0, lanes, 4):
                at = i * lanes + c
                q0 = q[at] * share
                q1 = q[at + 1] * share
                q2 = q[at + 2] * share
                q3 = q[at + 3] * share
                for k in range(3):
                    v = np.uint32(vertices_s[pixel, k])
                    w = weights_s[pixel, k]
                    a0 = sums_s[v, c] + w * q0
                    a1 = sums_s[v, c + 1] + w * q1
                    a2 = sums_s[v, c + 2] + w * q2
                    a3 = sums_s[v, c + 3] + w * q3
                    sums_s[v, c] = a0
                    sums_s[v, c + 1] = a1
                    sums_s[v, c + 2] = a2
                    sums_s[v, c + 3] = a3
                for k in range(6):
                    v = np.uint32(vertices_b[pixel, k])
                    w = weights_b[pixel, k]
                    a0 = sums_b[v, c] + w * q0
                    a1 = sums_b[v, c + 1] + w * q1
                    a2 = sums_b[v, c + 2] + w * q2
                    a3 = sums_b[v, c + 3] + w * q3
                    sums_b[v, c] = a0
                    sums_b[v, c + 1] = a1
                    sums_b[v, c + 2] = a2
                    sums_b[v, c + 3] = a3
