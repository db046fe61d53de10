"""Numbers of the official code that both implementations share."""

from __future__ import annotations

#: Of the softmax over selected keys, and of the priorities.
EPSILON = 1e-6
