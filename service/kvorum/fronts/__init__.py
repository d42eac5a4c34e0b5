"""The fronts: each maps the bytes of one protocol to requests, and results to bytes."""
