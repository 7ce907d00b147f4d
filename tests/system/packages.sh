#!/usr/bin/env bash
# Installs what the system tests need and PyPI has not: Debian's clamav-daemon, Chromium, kubectl, Node.js with npm,
# buildah and mmdebstrap where no Docker answers, and the npm packages of package-lock.json. What is there already is
# left alone; otherwise it has to be root, on Debian or Ubuntu.
set -euo pipefail
cd "$(dirname "$0")"
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin" # clamd is there, and not on everyone's PATH
NODE=18                                             # what tus-js-client needs

fail() {
  echo "make test-system: $*" >&2
  exit 1
}

missing=()
command -v clamd >/dev/null || missing+=(clamav-daemon)
command -v chromium >/dev/null || missing+=(chromium)
command -v node >/dev/null || missing+=(nodejs)
command -v npm >/dev/null || missing+=(npm)
docker info >/dev/null 2>&1 || for tool in buildah mmdebstrap; do
  command -v "$tool" >/dev/null || missing+=("$tool")
done
command -v kubectl >/dev/null || missing+=(kubernetes-client)
if ((${#missing[@]})); then
  command -v apt-get >/dev/null || fail "install ${missing[*]} first: there is no apt-get to do it"
  ((EUID == 0)) || fail "apt-get install ${missing[*]} needs root: run it, or this once as root"
  echo "installing ${missing[*]}"
  # Daemons must not start, nor wait for a signature database: the tests run clamd with one of their own.
  policy=/usr/sbin/policy-rc.d
  if [[ ! -e $policy ]]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt=(apt-get -qq -o DPkg::Lock::Timeout=120 -o Acquire::Retries=3)
  "${apt[@]}" update || fail "apt-get update failed"
  "${apt[@]}" install --yes --no-install-recommends "${missing[@]}" >/dev/null ||
    fail "apt-get could not install ${missing[*]}"
  for program in clamd chromium node npm kubectl; do
    command -v "$program" >/dev/null || fail "$program is missing although ${missing[*]} was installed"
  done
fi
version=$(node --version)
major=${version#v}
((${major%%.*} >= NODE)) || fail "Node.js $NODE or newer is needed, and $(command -v node) is $version"
# npm keeps a copy of the lock file of what it installed last.
if ! cmp --silent package-lock.json node_modules/.installed; then
  npm ci --loglevel=error --no-audit --no-fund || fail "npm ci failed: run it in $PWD to see why"
  cp package-lock.json node_modules/.installed
fi
