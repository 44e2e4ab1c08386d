"""Measures the product and storms over it: a bench, a chaos run, a check of a GPU, one harness."""
