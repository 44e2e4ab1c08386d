"""Runs the scheduling policies on a virtual clock, beside what could be had at best."""
