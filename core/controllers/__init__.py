"""The controllers: each compares what is wanted with what is, and writes the smallest change that brings them closer.

Promises: every controller may be killed at any point and continues where things stand; none writes what is there
already; creations never outrun the cache (see `runtime.Expectations`); each reacts to events and holds no fixed delay
on the way from a change to its consequence. Only the leader of a Lease writes.

Depends on `core.api` (pure data) and `core.client`; `main` also starts `core.scheduler` and `core.routes`. Never
imports the store or the API server, and never speaks to a node: everything goes through the API.
"""
