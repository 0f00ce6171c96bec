"""Finished runs: records, statistics, tables."""

from lcbench.results.record import read

__all__ = ["read"]
