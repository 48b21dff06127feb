#!/bin/sh
# Make .venv with torpor (from this source) and what its tests and checks need. Does nothing if that is done already.
# PYTHON=... names the interpreter; otherwise the first Python >= 3.11 is taken, as root rather one that ordinary users
# can run too (the tests run torpor as both).
set -eu
cd "$(dirname "$0")/.."
unset PYTHONDONTWRITEBYTECODE || true

venv=.venv
stamp=$venv/.torpor-setup
want="$(cat pyproject.toml tools/setup-venv.sh | cksum) $(pwd)"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ] && "$venv/bin/python" -c 'import torpor, pytest' 2>/dev/null; then
    exit 0
fi

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
for_all() { # can other users run it? (not one below /root)
    real=$("$1" -c 'import os, sys; print(os.path.realpath(sys.executable))' 2>/dev/null) || return 1
    case $real in "$HOME"/*|/root/*) return 1 ;; *) return 0 ;; esac
}

python=${PYTHON:-}
if [ -z "$python" ]; then
    second=
    for name in python3 /usr/bin/python3 python3.14 python3.13 python3.12 python3.11; do
        path=$(command -v "$name" 2>/dev/null) || continue
        new_enough "$path" || continue
        if [ "$(id -u)" != 0 ] || for_all "$path"; then
            python=$path
            break
        fi
        [ -n "$second" ] || second=$path
    done
    python=${python:-$second}
fi
if [ -z "$python" ] || ! new_enough "$python"; then
    echo "setup: torpor needs Python 3.11 or later (PYTHON=/path/to/python3 make ...)" >&2
    exit 1
fi

if ! [ -x "$venv/bin/python" ] || ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
    echo "setup: making $venv with $python"
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
            echo "setup: $python has no ensurepip: installing $version-venv"
            apt-get update -qq || true
            DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$version-venv" >/dev/null ||
                DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv >/dev/null
        else
            echo "setup: $python cannot make virtual environments: install $version-venv (Debian, Ubuntu:" \
                "sudo apt-get install python3-venv), or name another with PYTHON=/path/to/python3" >&2
            exit 1
        fi
    fi
    rm -rf "$venv"
    "$python" -m venv "$venv"
fi

# numpy: for a test program. The rest stands in pyproject.toml.
tools=$("$venv/bin/python" - <<'END'
import tomllib
with open("pyproject.toml", "rb") as f:
    print("\n".join(tomllib.load(f)["dependency-groups"]["dev"]))
END
)
old=$IFS
IFS='
'
set -f
# shellcheck disable=SC2086
"$venv/bin/python" -m pip install -q --disable-pip-version-check -e . $tools "numpy>=1.26"
IFS=$old
"$venv/bin/python" -m compileall -q src >/dev/null
printf '%s' "$want" >"$stamp"
echo "setup: $venv is ready ($("$venv/bin/python" --version))"
