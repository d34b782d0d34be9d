"""The engine that the book builds: what chapters 2 to 4 teach, short enough to read.

It knows formulas and families, and never the engine that `lmmbook.fit` runs.
"""
