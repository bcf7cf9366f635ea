"""Flax Linen modules: arrays in, arrays out."""
