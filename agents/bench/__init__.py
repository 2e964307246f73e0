"""Benchmarks that need a running cluster; each makes its own and removes it.

Promises: figures are measured at the client, by what a user would see; nothing is left behind. Depends on
agents.cluster, core.client and dataplane.bench for the reports.
"""
