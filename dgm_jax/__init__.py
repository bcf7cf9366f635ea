"""Deep generative models in JAX: pure functions, one training loop, true numbers."""
