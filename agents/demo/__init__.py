"""The demonstration: a real application on a three-node cluster, and proof by real traffic of what Kernelet is for.

Promises: every check is measured, none is asserted by the script alone; nothing is left behind, also when it is
interrupted. Depends on agents.cluster and core.client.
"""
