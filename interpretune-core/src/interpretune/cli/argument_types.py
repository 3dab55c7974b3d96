"""Types of arguments of the command line; what does not fit is a wrong command line."""

from __future__ import annotations

import argparse


def positive(text: str) -> int:
    """A whole number from 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not a number from 1")
    return number


def layer(text: str) -> int:
    """The number of a layer."""
    number = int(text)
    if not 0 <= number < 10**6:
        raise argparse.ArgumentTypeError(f"{text} is not the number of a layer, counted from 0")
    return number


def seed(text: str) -> int:
    """A seed that torch takes."""
    from interpretune.config.checked import Seed, fits

    number = int(text)
    if not fits(number, Seed):
        raise argparse.ArgumentTypeError(f"{text} is not a seed: a whole number below 2^64")
    return number


def finite_positive(text: str) -> float:
    """A number above 0."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number
