"""From a checkpoint to scores: their protocol, statistics of real images, neighbours."""
