"""The engine that chapters 2 to 4 build. It never knows the one that `lmmbook.fit` runs."""
