"""The version, which a saved fit names, and from where `pyproject.toml` takes it."""

__version__ = "0.1.0"
