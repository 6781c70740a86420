"""Upslope: policies trained by policy gradients."""
