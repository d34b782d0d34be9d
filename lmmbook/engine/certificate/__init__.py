"""How far from the maximum, and how well is that known? It judges a fit and never moves one."""
