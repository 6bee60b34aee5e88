"""Every key of a configuration with its default, the variants of the paper, the checks."""
