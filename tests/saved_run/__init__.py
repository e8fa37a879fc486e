"""A run of two clients after its first round, as Accord 0.2.0 left it: `python -m tests.saved_run` creates it again.

It stays as it is while formats change: newer versions of Accord resume it, or refuse it in one line.
"""
