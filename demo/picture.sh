#!/bin/sh
# Makes demo/evidence.png, the picture in the README, from the demo's evidence page. Run `make demo` before.
# Needs Chromium.
set -eu
cd "$(dirname "$0")"
profile=$(mktemp -d)
trap 'rm -rf "$profile"' EXIT
chromium --headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync \
    --disable-component-update --user-data-dir="$profile" --hide-scrollbars --window-size=1160,1420 \
    --screenshot="$PWD/evidence.png" "file://$PWD/evidence.html" 2>"$profile/log" || { cat "$profile/log" >&2; exit 1; }
