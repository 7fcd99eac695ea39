"""Side-by-side speed and memory: ``python -m benchmarks.train`` and others, see README.md.

Run from the root of the repository. Results go to ``benchmarks/results/<machine>.json``, the tables
in ``benchmarks/README.md`` are made of them by ``python -m benchmarks.report``.
"""
