#!/bin/sh
# Create .venv and install theorylab in it with the exact versions of constraints.txt.
#
#   scripts/install.sh [EXTRAS]      EXTRAS: test, docs, bench, cluster (comma-separated)
#
# PYTHON   the Python to use (3.11 or newer; found by itself otherwise)
# TORCH    cpu (default) or cuda
# VENV     where the environment goes (default .venv)
set -eu
cd "$(dirname "$0")/.."
EXTRAS="${1:-}"
VENV="${VENV:-.venv}"
TORCH="${TORCH:-cpu}"
CPU_INDEX="https://download.pytorch.org/whl/cpu"

fail() {
    echo "theorylab: $*" >&2
    exit 1
}

case "$TORCH" in cpu | cuda) ;; *) fail "TORCH must be cpu or cuda, got '$TORCH'." ;; esac

if [ -z "${PYTHON:-}" ]; then
    for candidate in python3.11 python3.12 python3.13 python3; do
        if command -v "$candidate" >/dev/null 2>&1 && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            PYTHON="$candidate"
            break
        fi
    done
fi
[ -n "${PYTHON:-}" ] || fail "Python 3.11 or newer is needed, found $(python3 --version 2>&1 || echo none). Install it, or set PYTHON=/path/to/python3.11."
command -v "$PYTHON" >/dev/null 2>&1 || fail "PYTHON=$PYTHON is not a program."
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "Python 3.11 or newer is needed, $PYTHON is $("$PYTHON" --version 2>&1)."
"$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || fail "$PYTHON has no venv module. On Debian or Ubuntu: apt-get install python3-venv."

stamp="$VENV/.installed-$TORCH-$(echo "$EXTRAS" | tr ',' '-')"
if [ -f "$stamp" ] && [ "$stamp" -nt pyproject.toml ] && [ "$stamp" -nt constraints.txt ]; then
    exit 0
fi

[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check "$@"; }

# A plain `pip install torch` on Linux brings gigabytes of CUDA libraries. PyTorch's own index has the CPU build; where it cannot be
# reached, pip's own index will do if what it offers needs no CUDA, which a dry run tells before anything large is downloaded.
if ! "$VENV/bin/python" -c 'import importlib.metadata as m; m.version("torch")' 2>/dev/null; then
    version="$(sed -n 's/^torch==//p' constraints.txt)"
    if [ "$TORCH" = cuda ] || [ "$(uname -s)-$(uname -m)" != Linux-x86_64 ]; then
        pip install --quiet -c constraints.txt "torch==$version"
    elif "$VENV/bin/python" -c "import urllib.request as u; u.urlopen('$CPU_INDEX/torch/', timeout=5)" 2>/dev/null; then
        pip install --quiet -c constraints.txt --extra-index-url "$CPU_INDEX" "torch==$version+cpu"
    else
        echo "theorylab: PyTorch's CPU index does not answer; using pip's own index."
        pip install --quiet --dry-run --report "$VENV/torch.json" -c constraints.txt "torch==$version" >/dev/null
        if grep -q '"name": "nvidia' "$VENV/torch.json"; then
            fail "torch $version from pip's index needs CUDA libraries (gigabytes). Retry when $CPU_INDEX can be reached, or set TORCH=cuda."
        fi
        pip install --quiet -c constraints.txt "torch==$version"
    fi
fi
pip install --quiet -c constraints.txt -e ".${EXTRAS:+[$EXTRAS]}"
touch "$stamp"
