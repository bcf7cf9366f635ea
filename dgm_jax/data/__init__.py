"""Sources of numpy arrays, transforms with their log-determinant, batches as a function of the step."""
