"""Sizes as people write them, for the tools of this folder."""

import argparse
import re

_POWERS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "KI": 1024, "MI": 1024**2, "GI": 1024**3}
MIB = 1 << 20


def parse_size(text: str) -> int:
    """Bytes of `1GiB`, `2.4GB`, `512M` or a plain count. Raises ArgumentTypeError with a sentence."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?)B?", text.strip().upper())
    if match is None or match[2] not in _POWERS or (size := int(float(match[1]) * _POWERS[match[2]])) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write 1GiB, 2.4GB or a number of bytes.")
    return size
