"""What every benchmark reports with: a table, JSON of one shape, a plot.

Promises: one shape of results for all benchmarks; a case without a reference leaves those fields null. Depends on
nothing but matplotlib, and that only when a plot is asked for. Never measures anything itself.
"""

from .report import Report, Result

__all__ = ["Report", "Result"]
