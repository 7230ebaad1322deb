#!/bin/sh
# Install Debian's chromium for the test that opens the report's page. Says why on stderr and exits 1 where it cannot.
set -eu

if command -v chromium >/dev/null; then exit 0; fi
if [ "$(id -u)" != 0 ]; then echo "not root: install chromium yourself" >&2; exit 1; fi
if ! command -v apt-get >/dev/null; then echo "no apt-get here: install chromium yourself" >&2; exit 1; fi

export DEBIAN_FRONTEND=noninteractive
apt="timeout 240 apt-get -qq -o DPkg::Lock::Timeout=60 -o Acquire::Retries=2"
{ $apt update && $apt install --no-install-recommends chromium; } >&2
command -v chromium >/dev/null || { echo "this system's packages have no chromium" >&2; exit 1; }
