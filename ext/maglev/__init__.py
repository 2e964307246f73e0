"""Maglev hashing: lookup tables by which a client keeps its backend while others come and go.

Promises: `table` is a pure function of names, weights and size, the same on every machine. Depends on nothing of
Kernelet. Never decides who is in a table or how large it is.

Source: Eisenbud et al., Maglev: A Fast and Reliable Software Network Load Balancer, NSDI 2016, section 3.4.
"""

from ._maglev import table

__all__ = ["table"]
