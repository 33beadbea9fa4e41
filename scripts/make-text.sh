#!/usr/bin/env bash
# Makes data/text.txt.gz: the King James Bible from Debian's bible-kjv-text, a verse a line, without the verses' numbers.
# Needs Debian (apt-get download, dpkg) and Python; installs nothing. The text is the same bytes each time and is checked; the
# compressed bytes may differ with another zlib.
#
#   scripts/make-text.sh [FILE]           default: data/text.txt.gz
set -euo pipefail
out=$(realpath "${1:-$(dirname "$0")/../data/text.txt.gz}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get download bible-kjv bible-kjv-text >&2
for package in *.deb; do dpkg -x "$package" .; done
usr/bin/bible -f -p usr/lib 'Gen1:1-Rev22:21' | sed -E 's/^[0-9]?[A-Za-z]+[0-9]+:[0-9]+ //' >text.txt
sha256sum --check --quiet - <<<'b5c4940bcfeee072c0935b5200d0f9d88a00a0199cb0961d16133458fcdfae5d  text.txt'
python3 - text.txt "$out" <<'PY'
import gzip, sys
with open(sys.argv[2], "wb") as file:
    # No name and no time in the header: equal text gives equal bytes.
    with gzip.GzipFile("", "wb", 9, file, mtime=0) as out:
        out.write(open(sys.argv[1], "rb").read())
PY
ls -l "$out" >&2
