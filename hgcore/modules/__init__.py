"""Torch modules and data loaders in a Problem."""
