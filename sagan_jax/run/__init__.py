"""A run's folder: files, provenance, checkpoints, logs, signs of a collapse."""
