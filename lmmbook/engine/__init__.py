"""The engine that `lmmbook.fit` runs: Monte Carlo EM for any formula, family and device.

It never asks for the exact answer, nor for what the book shows; only `fit` and `assemble` make
results.
"""
