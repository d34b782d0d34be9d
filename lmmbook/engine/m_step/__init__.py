"""The M-step: new parameters from draws of the effects; how these were drawn it does not know."""
