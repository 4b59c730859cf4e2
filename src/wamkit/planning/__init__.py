"""Planners: they search over a model's noise through callables, and never know a concrete model."""
