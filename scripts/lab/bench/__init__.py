"""Measures the product against the bare server that it supervises; `scripts/bench` runs it."""
