"""Environments: finding them, stepping a vector of them, and what their episode ends mean."""
