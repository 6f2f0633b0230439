"""Whole numbers on a command line, as argparse's types: several commands and benchmarks take them."""

from __future__ import annotations

import argparse


def whole(text: str, least: int = 0) -> int:
    if not text.isdecimal() or not least <= int(text) < 1 << 40:
        raise argparse.ArgumentTypeError(f"must be a whole number >= {least}, got {text!r}")
    return int(text)


def count(text: str) -> int:
    return whole(text, 1)


def counts(text: str) -> list[int]:
    """Numbers with commas between, none twice."""
    numbers = [count(part.strip()) for part in text.split(",")]
    if len(set(numbers)) < len(numbers):
        raise argparse.ArgumentTypeError(f"must not have a number twice, got {text!r}")
    return numbers
