#!/usr/bin/env python3
"""Reads a .safetensors with Hugging Face's own package and prints one line a tensor: name, shape, bytes in hex.

Then writes the same tensors with that package and compares the files byte for byte: the writers agree on order,
header and padding. Exits 77, saying why on stderr, where the package or numpy is missing.

    python3 scripts/check-safetensors.py FILE.safetensors
"""

import sys

try:
    import numpy
    import safetensors
    import safetensors.numpy
except ImportError as error:
    print(f"{error}; pip install safetensors numpy", file=sys.stderr)
    sys.exit(77)


def main() -> None:
    path = sys.argv[1]
    tensors = safetensors.numpy.load_file(path)
    for name in sorted(tensors):
        array = numpy.ascontiguousarray(tensors[name])
        shape = "[" + ", ".join(map(str, tensors[name].shape)) + "]"
        print(name, shape, array.tobytes().hex())
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    theirs = safetensors.numpy.save(tensors, metadata=metadata)
    with open(path, "rb") as file:
        ours = file.read()
    if theirs != ours:
        sys.exit(f"the package writes other bytes:\n{theirs[:400]!r}\nthan we did:\n{ours[:400]!r}")


main()
