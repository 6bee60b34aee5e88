"""Scores of a checkpoint with their protocol, statistics of real images, nearest neighbours."""
