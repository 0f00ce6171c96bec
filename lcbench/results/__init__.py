"""Finished runs: records, statistics, tables."""

from lcbench.results.compare import compare
from lcbench.results.record import read

__all__ = ["compare", "read"]
