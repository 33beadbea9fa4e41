#!/usr/bin/env python3
"""Reads a folder of TensorBoard events with TensorBoard's own package, as TensorBoard itself would.

Prints one line a scalar: tag, step, value (the f32 in hex). Fails where a checksum is wrong, where a tag has a step twice or
out of order, or, with a metrics.csv, where its epochs are not those of the events. Exits 77, saying why on stderr, where
the package is missing.

    python3 scripts/check-tensorboard.py FOLDER [metrics.csv]
"""

import csv
import struct
import sys

try:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
except ImportError as error:
    print(f"{error}; pip install tensorboard 'setuptools<81'", file=sys.stderr)
    sys.exit(77)


def f32(value: float) -> bytes:
    return struct.pack("<f", value)


def main() -> None:
    events = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0}, purge_orphaned_data=False)
    events.Reload()
    series = {}
    for tag in sorted(events.Tags()["scalars"]):
        series[tag] = [(event.step, event.value) for event in events.Scalars(tag)]
        steps = [step for step, _ in series[tag]]
        if any(a >= b for a, b in zip(steps, steps[1:])):
            sys.exit(f"{tag}: steps repeat or go back: {steps}")
        for step, value in series[tag]:
            print(tag, step, f32(value).hex())
    if events.file_version != 2.0:
        sys.exit(f"file version {events.file_version}")
    if len(sys.argv) < 3:
        return
    with open(sys.argv[2], newline="") as file:
        rows = list(csv.DictReader(file))
    for column in rows[0]:
        if column in ("epoch", "step"):
            continue
        wanted = [(int(row["step"]), f32(float(row[column]))) for row in rows if row[column]]
        found = [(step, f32(value)) for step, value in series.get(column, [])]
        if found != wanted:
            sys.exit(f"{column}: the table has {wanted}, the events {found}")


main()
