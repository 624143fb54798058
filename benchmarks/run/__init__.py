"""Scripts of measurements; each prints its tables and writes its page of ``benchmarks/results/``.

Run one from the project's root: ``python -m benchmarks.run.training_step --fast``.
"""
