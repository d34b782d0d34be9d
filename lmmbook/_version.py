"""The version, which a saved fit names; `pyproject.toml` has it too."""

__version__ = "0.1.0"
