"""Processes, replicas, signals, files, the CPU and the command line."""
