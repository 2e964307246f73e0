"""The kinds Kernelet knows and everything that can be said about an object without I/O.

Promises: defaulting, validation, patches, selectors, printing and discovery behave as in Kubernetes 1.36; every error
is an `errors.ApiError` or a list of `errors.Cause` naming the JSON path; arbitrary JSON never crashes it.
May depend on: the standard library, msgspec and (lazily, through `Kind.model`) lightkube-models.
Never: opens files or sockets, keeps state between calls other than caches, or imports another part of Kernelet.
"""
