"""Variants of a configuration with several seeds: python -m launch.sweep, see __main__.py."""
