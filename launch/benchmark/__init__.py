"""Measures how fast a configuration trains: python -m launch.benchmark, see __main__.py."""
