# What the scripts share: where things are, and errors in a sentence.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${VENV:-$ROOT/.venv}"                            # export and serving
TRAINING_VENV="${TRAINING_VENV:-$ROOT/.venv-training}" # fine-tuning and evaluation
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"

die() {
    echo "error: $*" >&2
    exit 2
}

need_install() {
    "$ROOT/scripts/install" >&2
}

need_package() { # root on Debian and Ubuntu gets it, anybody else is told
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || die "$1 is missing: $2. sudo apt-get install $1"
    apt-get update -qq && apt-get install -y -qq "$1" || die "apt-get could not install $1: $2."
}

need_demo_packages() {
    local package
    for package in fonts-noto-color-emoji unicode-cldr-core; do
        dpkg -s "$package" >/dev/null 2>&1 || need_package "$package" "the demonstration's data set is made of it"
    done
}
