"""The first kube-proxy's design, as the baseline of the benchmarks; engine.py tells it."""
