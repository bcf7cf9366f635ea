"""Estimators, samplers and bounds that know densities and kernels, never a model."""
