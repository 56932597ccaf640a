"""Anywhere: the values of the system. No I/O, no clock, no randomness of their own."""
