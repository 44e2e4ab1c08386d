"""Where vectors are kept and found again: in a process of ours, or in a Qdrant server."""
