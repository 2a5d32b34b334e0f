"""Benchmarks: what the node reaches, beside what is physically possible and what others reach, all in one run.

Absolute times do not travel between machines, so every goal is a ratio: against the ideal line computed from the stage
times that really occurred, against the node's own serial mode, or against a peer that runs in the same rounds. A module
of this package with a ``main(argv)`` is a benchmark: ``run_node.py bench NAME``.
"""
