"""What a node tells of itself: counters, metrics, logs and traces."""
