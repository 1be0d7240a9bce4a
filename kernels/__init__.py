"""Computation on tensors; knows neither plane."""
