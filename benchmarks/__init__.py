"""Measure this library and others in one run on one machine: `python -m benchmarks`.

Every figure of a peer is taken in the same process as ours, in turns, so that what else the machine does
falls on all alike. Linux only: threads are bounded by processor affinity and memory is read from /proc.
"""
