# shellcheck shell=bash
# Sourced by the other entries: numbered steps, and the Python environment they all work in.
# Works on the checkout that it stands in, `root`, whatever the current folder is.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

# step NUMBER TITLE COMMAND...: run the command, and say when it starts and how long it took.
# The title of a command with output of its own ends with a line break.
step() {
    local number=$1 title=$2 started tenths
    shift 2
    started=$(date +%s%N)
    printf '[%s] %s' "$number" "$title"
    "$@"
    tenths=$((($(date +%s%N) - started) / 100000000))
    printf '(%d.%d s)\n' $((tenths / 10)) $((tenths % 10))
}

# fail LINE...: say why nothing more can be done, and end.
fail() {
    printf '\n%s' "$@" >&2
    printf '\n' >&2
    exit 1
}

# prepare_python LOCK: make .venv with what the lock pins, and with this package.
prepare_python() {
    make_environment
    install_packages "$1"
}

# Make .venv, unless a usable one stands there.
make_environment() {
    # The scripts of an environment carry its path: after a move of the checkout they start nothing.
    if [[ -x $root/.venv/bin/python ]] && grep -qsF "$root/.venv/bin/" "$root/.venv/bin/pip"; then
        return
    fi
    local python=${PYTHON:-python3}
    command -v "$python" >/dev/null ||
        fail "$python was not found. Install Python 3.11 or newer, or name one: PYTHON=/path/to/python3."
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$python is $("$python" --version 2>&1), and 3.11 or newer is needed." \
            "Install one and name it: PYTHON=/path/to/python3.11."
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python cannot make virtual environments: its venv module is missing." \
            "Install it: \`apt-get install python3-venv\` (Debian, Ubuntu)."
    "$python" -m venv --clear "$root/.venv"
}

# install_packages LOCK: install what the lock pins, by hash, and this package as an editable one.
# Skipped while the lock and pyproject.toml are those of the last installation.
install_packages() {
    local lock=$root/$1 stamp=$root/.venv/installed-$1 wanted
    wanted=$(cat "$lock" "$root/pyproject.toml" | sha256sum)
    if [[ -f $stamp && $(<"$stamp") == "$wanted" ]]; then
        return
    fi
    local pip=("$root/.venv/bin/python" -m pip --quiet --disable-pip-version-check)
    "${pip[@]}" install --progress-bar off --require-hashes --requirement "$lock"
    "${pip[@]}" install --no-deps --editable "$root"
    printf '%s\n' "$wanted" >"$stamp"
}

# run_lab RUNNER ARGUMENTS...: make everything ready that a runner of scripts/lab needs, and run it.
run_lab() {
    local bin=$root/.venv/bin
    step 1/4 "python environment … " prepare_python requirements-dev.lock
    step 2/4 $'native llama-server …\n' "$bin/python" "$root/scripts/build_llama_server.py"
    step 3/4 $'demo models …\n' "$bin/python" "$root/scripts/make_demo_models.py"
    printf '[4/4] %s\n' "$1"
    PYTHONPATH=$root/scripts exec "$bin/python" -m "lab.$1" "${@:2}"
}
