"""Compiled engines behind one protocol: what loads an artifact and runs it."""

from __future__ import annotations

from wsss_rt.engines.base import Engine, EngineOutput
from wsss_rt.engines.select import BACKENDS, DEVICES, PRECISIONS, open_engine

__all__ = ["BACKENDS", "DEVICES", "PRECISIONS", "Engine", "EngineOutput", "open_engine"]
