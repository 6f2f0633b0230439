"""Kernels of HAL's own."""
