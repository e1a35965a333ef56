"""The pieces a model is made of: they hold weights and call kernels. Knows no checkpoint and no request."""
