"""Approximate Bayesian inference in JAX."""
