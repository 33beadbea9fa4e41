#!/usr/bin/env python3
"""Makes data/digits.csv.gz and the tables in tests/data/ from the data sets in scikit-learn's wheel.

Usage: pip download scikit-learn --no-deps --dest DIR; scripts/make-test-tables.py DIR/scikit_learn-*.whl
Only the standard library is needed; the same wheel gives the same bytes.
"""

import csv
import gzip
import io
import random
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = "sklearn/datasets/data/"

BREAST_CANCER_MEASURES = [
    "radius", "texture", "perimeter", "area", "smoothness", "compactness", "concavity", "concave points", "symmetry",
    "fractal dimension",
]
WINE_COLUMNS = [
    "alcohol", "malic_acid", "ash", "alcalinity_of_ash", "magnesium", "total_phenols", "flavanoids",
    "nonflavanoid_phenols", "proanthocyanins", "color_intensity", "hue", "od280/od315_of_diluted_wines", "proline",
]
DIABETES_COLUMNS = ["age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6"]
HOLES = 0.02


def write(name, header, rows):
    path = ROOT / "tests" / "data" / name
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    print(f"{path.relative_to(ROOT)}: {len(rows)} rows, {path.stat().st_size} bytes")


def main(wheel):
    archive = zipfile.ZipFile(wheel)

    def rows(name, separator=","):
        raw = archive.read(DATA + name)
        text = gzip.decompress(raw) if name.endswith(".gz") else raw
        return [row for row in csv.reader(io.StringIO(text.decode()), delimiter=separator) if row]

    (ROOT / "data" / "digits.csv.gz").write_bytes(archive.read(DATA + "digits.csv.gz"))

    # The first line of these two counts rows and columns and names the classes.
    (_, _, *classes), *table = rows("breast_cancer.csv")
    names = [f"{kind} {measure}" for kind in ("mean", "error of", "worst") for measure in BREAST_CANCER_MEASURES]
    generator = random.Random(2026)
    holed = [[("" if generator.random() < HOLES else cell) for cell in row[:-1]] + [classes[int(row[-1])]] for row in table]
    write("breast_cancer.csv", names + ["diagnosis"], holed)

    (_, _, *classes), *table = rows("wine_data.csv")
    write("wine.csv", WINE_COLUMNS + ["cultivar"], [row[:-1] + [classes[int(row[-1])]] for row in table])

    table, targets = rows("diabetes_data_raw.csv.gz", " "), rows("diabetes_target.csv.gz")
    plain = [row + [f"{float(target):g}"] for row, (target,) in zip(table, targets, strict=True)]
    write("diabetes.csv", DIABETES_COLUMNS + ["progression"], plain)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
