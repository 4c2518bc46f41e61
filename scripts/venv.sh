# Sourced by scripts/test, scripts/demo and scripts/docs, from the top of the checkout: makes and refreshes .venv.
# shellcheck shell=bash

# venv_with dev|demo: .venv with esp installed editable, and the dev dependencies or only the embedded etcd.
# Does nothing when that was done before for the same pyproject.toml, folder and interpreter.
venv_with() {
    local wanted=$1 stamp=.venv/.installed python have='' now
    if ! .venv/bin/python -c '' 2>/dev/null; then
        python=$(venv_interpreter)
        echo "making .venv with $("$python" --version)" >&2
        venv_make "$python" .venv
    fi
    now=$(cat pyproject.toml <(pwd) <(.venv/bin/python --version) | cksum)
    if [ -f "$stamp" ]; then have=$(cat "$stamp"); fi
    case $have in "dev $now" | "$wanted $now") return ;; esac

    # Without compiling what most of is never imported; Python does that when it imports.
    echo "installing esp and what it needs into .venv" >&2
    rm -f "$stamp"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --upgrade 'pip>=25.1'
    if [ "$wanted" = dev ]; then
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --editable . --group dev
    else
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --editable '.[local]'
    fi
    echo "$wanted $now" >"$stamp"
}

# The Python to make .venv with: $PYTHON, else the first of the usual names that is 3.11 or newer.
venv_interpreter() {
    local name
    for name in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python}; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    echo "no Python 3.11 or newer found: install one, or set PYTHON to it" >&2
    return 1
}

# venv_make PYTHON FOLDER: Debian splits ensurepip off into python3-venv; without it, the interpreter's own pip can fill
# the environment.
venv_make() {
    rm -rf "$2"
    if "$1" -c 'import ensurepip' 2>/dev/null; then
        "$1" -m venv "$2"
    elif "$1" -m pip --version >/dev/null 2>&1; then
        "$1" -m venv --without-pip "$2"
        "$1" -m pip --quiet --disable-pip-version-check --python "$2/bin/python" install pip
    else
        echo "$1 has neither ensurepip nor pip: install one of them (Debian: apt install python3-venv)" >&2
        return 1
    fi
}
