"""Storms over the real controller and counts what became of every request; `scripts/chaos` runs it.

What happens is chosen from a seed: switches, kills of the server at each phase, kills of the
controller, clients that leave, slow readers, broken bodies, corrupt model files. Every request
stands in a ledger; the balance at the end says whether each was answered rightly, refused with a
reason, cancelled by its client or broken by a fault that the run itself made. Anything else fails.
"""
