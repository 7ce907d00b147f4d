#!/usr/bin/env bash
# Installs what the system tests need and PyPI has not: Debian's clamav-daemon, Node.js with npm, and the npm
# clients of package-lock.json. What is there already is left alone; otherwise it has to be root.
set -euo pipefail
cd "$(dirname "$0")"

missing=()
command -v clamd >/dev/null || missing+=(clamav-daemon)
command -v node >/dev/null || missing+=(nodejs)
command -v npm >/dev/null || missing+=(npm)
if ((${#missing[@]})); then
  echo "installing ${missing[*]}"
  # Daemons must not start, nor wait for a signature database: the tests run clamd with one of their own.
  policy=/usr/sbin/policy-rc.d
  if [[ ! -e $policy ]]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get -qq update
  apt-get -qq install --yes --no-install-recommends "${missing[@]}" >/dev/null
fi
# npm keeps a copy of the lock file of what it installed last.
if ! cmp --silent package-lock.json node_modules/.installed; then
  npm ci --silent --no-audit --no-fund
  cp package-lock.json node_modules/.installed
fi
