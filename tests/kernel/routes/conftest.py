"""Engines as their own tests have them."""

from __future__ import annotations

from ..ebpf.conftest import engine, node

__all__ = ["engine", "node"]
