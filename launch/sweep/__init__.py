"""Sweeps: variants of a configuration with several seeds; see __main__.py."""
