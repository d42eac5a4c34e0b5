"""The replicated key-value state."""
