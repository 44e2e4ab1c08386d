"""Simulated drivers of both vendors, loaded through the vendors' real bindings.

Tests and `scripts/chaos` change what they answer; see `nvidia.SimulatedGpu` and `amd.SimulatedAmd`.
"""
