"""llama-supervisor: one GPU, two kinds of work, and proof that memory is free in between."""

__version__ = "0.1.0"
