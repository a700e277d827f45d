"""Suites: TOML declarations -> verified files -> Items."""
