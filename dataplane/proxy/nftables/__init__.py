"""Service routing as elements of a few nftables maps; engine.py tells the design.

Depends on libnftables for rules and on `ext.nft` for elements. Its parts of general use (elements, ledger, ruleset,
watch) serve the userspace engine as well.
"""
