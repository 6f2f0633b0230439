"""Emulators of vendor packages: real signatures, documented semantics, refusals and traps, on CPU tensors.

They import nothing of HAL (test_emulator_common.py holds it): an emulator that mirrors the adapter proves nothing.
"""
