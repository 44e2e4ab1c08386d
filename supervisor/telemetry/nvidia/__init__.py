"""NVIDIA: NVML, CUDA's rules for which devices are visible, and what the doctor must know."""
