"""C, Cython, cffi and BPF: mechanism only.

Promises: each sub-package exposes one kernel interface as a small typed API, raises OSError subclasses that name what
the kernel refused, and leaks neither memory nor descriptors. Depends on nothing of Kernelet. Never holds policy: it
does not know what a service, a pod or a node is.
"""
