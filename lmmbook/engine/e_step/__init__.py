"""The E-step: new draws of the random effects, at parameters that it may not change."""
