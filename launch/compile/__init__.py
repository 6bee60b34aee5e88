"""Predicts memory and speed on accelerators that are not there; start at __main__.py."""
