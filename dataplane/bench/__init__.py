"""Benchmarks of what programs the kernel, and what every benchmark reports with: a table, JSON of one shape, a plot.

Promises: one shape of results for all benchmarks; a case without a reference leaves those fields null. A benchmark
builds its own network in namespaces, needs no cluster, and removes everything, also when it is interrupted. Depends
on `dataplane.proxy`, on `ext`, on nginx, wrk and the like as programs, and on matplotlib only when a plot is asked for.
Sends nothing beyond the namespaces it made.
"""

from .report import Report, Result, curve, quantile

__all__ = ["Report", "Result", "curve", "quantile"]
