#!/usr/bin/env bash
# Makes this checkout ready to build, run and test: Debian packages, .venv, generated and compiled modules.
# Safe to run again at any time; what is there already is skipped.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\033[1m==>\033[0m %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

names_in() { sed 's/#.*//' "$1" | xargs -n1; }

# Shows a command's output only when it fails.
quietly() { "$@" >build/setup.log 2>&1 || { cat build/setup.log >&2; fail "this failed, its output is above: $*"; }; }

policy_made=""
clean_up() { [ -z "$policy_made" ] || rm -f /usr/sbin/policy-rc.d; }
trap clean_up EXIT

missing_packages() {
    local name
    for name in $(names_in packaging/debian-packages.txt); do
        dpkg-query -W -f='${db:Status-Status}' "$name" 2>/dev/null | grep -qx installed || echo "$name"
    done
    # kubectl from elsewhere conflicts with Debian's package, so that is only for machines without any.
    command -v kubectl >/dev/null || echo kubernetes-client
}

install_packages() {
    local missing
    missing=$(missing_packages)
    if [ -z "$missing" ]; then
        step "Debian packages: all there"
        return
    fi
    [ "$(id -u)" = 0 ] || fail "these Debian packages are missing and installing them needs root: $(echo "$missing" | xargs); run 'sudo make setup'"
    step "Debian packages: installing $(echo "$missing" | xargs)"
    # Programs are wanted, not services: etcd and docker are started by what needs them.
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
        chmod +x /usr/sbin/policy-rc.d
        policy_made=1
    fi
    apt-get update -q
    # shellcheck disable=SC2086 # one word a package
    DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends $missing
    local unit
    for unit in etcd haproxy; do
        if command -v systemctl >/dev/null && grep -q "$unit" <<<"$missing"; then
            systemctl --quiet disable "$unit" || true # no systemd runs here
        fi
    done
}

download_demo_packages() {
    local folder=build/debs
    local stamp="$folder/.complete"
    if [ -e "$stamp" ] && cmp -s packaging/demo-packages.txt "$stamp"; then
        step "Demo packages: all there"
        return
    fi
    step "Demo packages: downloading to $folder"
    mkdir -p "$folder"
    # Names are looked up in the package lists, which a new machine does not have yet.
    apt-cache show nginx >/dev/null 2>&1 || apt-get update -q
    # shellcheck disable=SC2046 # one word a package
    (cd "$folder" && rm -f ./*.deb && apt-get download -q -o APT::Sandbox::User=root $(names_in ../../packaging/demo-packages.txt))
    cp packaging/demo-packages.txt "$stamp"
}

make_venv() {
    local want stamp=.venv/.requirements
    want=$(cat pyproject.toml setup.py | sha256sum)
    if [ -x .venv/bin/kernelet ] && [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then
        step "Python packages: all there"
        return
    fi
    step "Python packages: installing into .venv"
    # Debian's interpreter, since the modules nftables and bcc exist only as Debian packages.
    [ -x .venv/bin/python ] || /usr/bin/python3 -m venv --system-site-packages .venv
    quietly .venv/bin/python -m pip install -q --upgrade pip 'setuptools>=77' wheel cython cffi grpcio-tools mypy-protobuf
    quietly .venv/bin/python -m pip install -q --no-build-isolation -e '.[dev,plot]'
    echo "$want" >"$stamp"
}

build_modules() {
    step "gRPC stubs, BPF objects, Cython and cffi modules: building"
    quietly .venv/bin/python setup.py -q build_proto build_bpf build_ext --inplace
    # Type checkers and import linters see the packages under their import root here.
    mkdir -p build/tree/kernelet
    local top
    for top in core dataplane ext agents proto; do
        ln -sfn "../../../$top" "build/tree/kernelet/$top"
    done
}

command -v apt-get >/dev/null || fail "apt-get is missing: setup knows Debian 12 only; install the packages of packaging/debian-packages.txt by hand"
mkdir -p build
install_packages
make_venv
build_modules
download_demo_packages
step "ready"
