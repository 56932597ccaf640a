# Sourced by scripts/* and .ci/run: the project's virtual environments. Needs bash, any version.
# Not for `cd`: everything is named from the repository's root, so the callers run from anywhere.

ROOT=$(CDPATH= cd -- "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

say() { printf '%s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# Whether the program is a Python of at least 3.11 that can make virtual environments. It is run,
# because a pyenv shim can exist and not run, and Debian's Python can lack ensurepip.
# usable_python PROGRAM [MAJOR.MINOR]: with a version, exactly that one.
usable_python() {
    "$1" -c '
import sys, venv, ensurepip
wanted = sys.argv[1:] and tuple(map(int, sys.argv[1].split(".")))
sys.exit(sys.version_info < (3, 11) or bool(wanted) and sys.version_info[:2] != wanted)
' ${2:+"$2"} </dev/null >/dev/null 2>&1
}

# Every place where a python of the version may be, one a line: PATH (all of it, since the first
# hit may be a shim that does not run), /usr/bin, and pyenv's own folders.
python_candidates() {
    type -ap "python$1"
    printf '%s\n' "/usr/bin/python$1" "/usr/local/bin/python$1"
    local folder
    for folder in "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/$1"*; do
        [ -x "$folder/bin/python$1" ] && printf '%s\n' "$folder/bin/python$1"
    done
    return 0
}

# Print the first python of exactly the version that works here; fail without a word if none does.
find_python_version() {
    local candidate
    while IFS= read -r candidate; do
        if usable_python "$candidate" "$1"; then
            printf '%s\n' "$candidate"
            return 0
        fi
    done < <(python_candidates "$1")
    return 1
}

# Print $PYTHON, else the first usable python of 3.11, 3.12, 3.13 and whatever python3 is.
find_python() {
    if [ -n "${PYTHON:-}" ]; then
        usable_python "$PYTHON" || die "\$PYTHON is $PYTHON, which does not run as a Python of at least 3.11 with venv and ensurepip."
        printf '%s\n' "$PYTHON"
        return 0
    fi
    local version candidate
    for version in 3.11 3.12 3.13; do
        find_python_version "$version" && return 0
    done
    while IFS= read -r candidate; do
        if usable_python "$candidate"; then
            printf '%s\n' "$candidate"
            return 0
        fi
    done < <(type -ap python3)
    die "No Python of at least 3.11 with venv and ensurepip runs here. Install one (Debian: apt-get install python3 python3-venv; macOS: brew install python@3.13), or name it in \$PYTHON."
}

# can_install: whether packages of the system can be installed without asking anybody.
can_install() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

# apt_get SECONDS ARGUMENT…: for so long at most.
apt_get() { DEBIAN_FRONTEND=noninteractive timeout "$1" apt-get "${@:2}" -qq </dev/null >&2; }

# bring_postgres PYTHON: the tests run on the system's, unless the environment says otherwise. Where it is not there
# and cannot be installed without asking anybody, on the wheel's.
bring_postgres() {
    [ -z "${QML_MP_TEST_URL:-}${QML_MP_TEST_POSTGRES:-}" ] || return 0
    (cd "$ROOT" && QML_MP_TEST_POSTGRES=system "$1" -m tests.postgres_programs) </dev/null >&2 && return 0
    if can_install; then
        say "── installing PostgreSQL"
        apt_get 60 update && apt_get 240 install -y postgresql && return 0
    fi
    say "Everything runs on the PostgreSQL of the wheel."
}

# bring_pgbouncer: the tests have a real one, which no wheel brings. Where it cannot be installed without asking
# anybody, those that need it are skipped and say what to install.
bring_pgbouncer() {
    PATH="$PATH:/usr/sbin:/usr/local/sbin" command -v pgbouncer >/dev/null && return 0
    if ! can_install; then
        say "PgBouncer is not installed (Debian: apt-get install pgbouncer; macOS: brew install pgbouncer)."
        return 0
    fi
    say "── installing PgBouncer"
    apt_get 60 update && apt_get 60 install -y pgbouncer || say "PgBouncer could not be installed."
}

# bring_chromium PYTHON: the tests of the page have a real one, which no wheel brings. Those that need it fail where
# it is not to be had, and say what to install.
bring_chromium() {
    has_chromium() { (cd "$ROOT" && "$1" -m tests.browser.chromium) </dev/null; }
    best_package() {
        apt-cache show chromium-headless-shell >/dev/null 2>&1 && echo chromium-headless-shell || echo chromium
    }
    has_chromium "$1" >/dev/null 2>&1 && return 0
    if [ -n "${QML_MP_TEST_CHROMIUM:-}" ] || ! can_install; then
        has_chromium "$1" >&2 || true
        return 0
    fi
    say "── installing Chromium"
    # 105 to 226 MB to fetch, some 10 s where the network is good. Its recommendations are for a desktop.
    apt_get 60 update && apt_get 240 install -y --no-install-recommends "$(best_package)" fonts-liberation ||
        say "Chromium could not be installed."
}

# make_venv PYTHON demo|test|check: the virtual environment in the repository for this Python, with at least what
# the group needs; prints its folder. Everything in it is locked by version and hash (scripts/requirements/), so an
# install is the same on any day. Made again when the locked requirements or pyproject.toml change.
make_venv() {
    local python=$1 group=$2 venv larger
    venv="$ROOT/.venv-$(version_of "$python")"
    for larger in demo test check; do  # each holds all of the one before
        if [[ "demo test check" == *"$group"*"$larger"* || $larger = "$group" ]] && is_current "$venv" "$larger"; then
            printf '%s\n' "$venv"
            return 0
        fi
    done
    begin_venv "$python" "$venv" "with scripts/requirements/$group.txt"
    install_locked "$venv" "$group"
    stamp_of "$group" >"$venv/.installed-$group"
    printf '%s\n' "$venv"
}

# install_locked VENV GROUP: the group's requirements, and then the project itself (editable), for which nothing
# more is fetched: its build backend is among the requirements.
install_locked() {
    pip_install "$1" --require-hashes -r "scripts/requirements/$2.txt"
    pip_install "$1" --no-deps --no-build-isolation -e .
}

# make_bench_venv PYTHON: one with what the tests need and the peers of the benchmark; prints its folder. A peer
# that cannot be installed is named and left out: not all have wheels for every machine.
make_bench_venv() {
    local python=$1 venv requirements=tests/bench/requirements.txt stamp peer
    venv="$ROOT/.venv-bench-$(version_of "$python")"
    stamp="$(stamp_of test) $(cksum <"$ROOT/$requirements")"
    if [ "$(cat "$venv/.installed-bench" 2>/dev/null)" != "$stamp" ] || ! "$venv/bin/python" -c '' </dev/null; then
        begin_venv "$python" "$venv" "with the peers of the benchmark"
        install_locked "$venv" test
        while IFS= read -r peer; do
            case $peer in '' | '#'*) continue ;; esac
            (pip_install "$venv" "$peer") || say "Left out: $peer"
        done <"$ROOT/$requirements"
        printf '%s\n' "$stamp" >"$venv/.installed-bench"
    fi
    printf '%s\n' "$venv"
}

# make_uv_venv: an environment with uv alone, locked like the others, in which requirements are resolved; prints
# the path of its program.
make_uv() {
    local venv="$ROOT/.venv-uv" python
    if [ "$(cat "$venv/.installed-uv" 2>/dev/null)" != "$(stamp_of uv)" ] || ! "$venv/bin/uv" --version >/dev/null 2>&1; then
        python=$(find_python)
        begin_venv "$python" "$venv" "with uv"
        pip_install "$venv" --require-hashes -r scripts/requirements/uv.txt
        stamp_of uv >"$venv/.installed-uv"
    fi
    printf '%s\n' "$venv/bin/uv"
}

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' </dev/null; }

# What an installed environment belongs to; with the folder, because an environment cannot be moved.
stamp_of() { printf '%s\n' "$ROOT $(cat "$ROOT/pyproject.toml" "$ROOT/scripts/requirements/$1.txt" | cksum)"; }

# is_current VENV GROUP: whether the group was installed there from the present files, and the environment runs.
is_current() {
    [ "$(cat "$1/.installed-$2" 2>/dev/null)" = "$(stamp_of "$2")" ] && "$1/bin/python" -c '' </dev/null 2>/dev/null
}

# begin_venv PYTHON VENV WHAT: a virtual environment that works, with what it had before if it did. Programs in it
# name its folder, so one that came along with a clone that was moved or copied is made anew.
begin_venv() {
    say "Making $2 $3"
    if [ "$(cat "$2/.made-as" 2>/dev/null)" != "$2" ] || ! usable_python "$2/bin/python" "$(version_of "$1")"; then
        rm -rf "$2"
    fi
    "$1" -m venv "$2" </dev/null >&2 || die "Making the virtual environment $2 failed."
    printf '%s\n' "$2" >"$2/.made-as"
}

# pip_install VENV ARGUMENT…: from the repository's root.
pip_install() {
    local venv=$1
    shift
    (cd "$ROOT" && "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@") </dev/null >&2 \
        || die "Installing into $venv failed ($*); see above."
}
