"""The check on a machine with a GPU: what a switch does to real device memory, written down.

`scripts/gpu_check` runs it. Each part measures one thing and fails alone; the report names the
device and the driver, because no figure here holds for another.
"""
