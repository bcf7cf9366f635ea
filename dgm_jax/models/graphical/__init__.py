"""Graphical models."""
