"""A run's folder: provenance, checkpoints, logs, signs of a collapse."""
