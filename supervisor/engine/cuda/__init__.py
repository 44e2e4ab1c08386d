"""NVIDIA's checkpoint API: a process's device memory moves to the host, and later back."""
