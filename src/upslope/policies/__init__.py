"""Policies: encoders, distributions and normalisers, put together as one actor-critic."""
