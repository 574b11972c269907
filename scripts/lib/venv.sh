# shellcheck shell=bash
# Sourced by the scripts beside this folder, from the root of the repository.

say() { printf '\n== %s\n' "$*"; }

# prepare_venv DIR ARGUMENT...: the virtual environment DIR holds what `pip install ARGUMENT...` installs.
# pip runs only if the arguments, pyproject.toml or Python changed since the last time.
prepare_venv() {
  local dir=$1 python=${PYTHON:-python3} recipe
  shift
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "qserve needs Python 3.11 or newer, and '$python' is not. Name one: PYTHON=python3.11 $0" >&2
    return 1
  }
  recipe=$({ printf '%s\n' "$PWD" "$@" && "$python" -VV && cat pyproject.toml; } | cksum)
  [[ -x $dir/bin/python && $(cat "$dir/installed" 2>/dev/null) == "$recipe" ]] && return
  say "installing into $dir (a minute or two the first time)"
  "$python" -m venv --clear "$dir"
  "$dir/bin/python" -m pip install --quiet --upgrade 'pip>=25.1' # the first that knows dependency groups
  "$dir/bin/python" -m pip install --quiet "$@"
  echo "$recipe" >"$dir/installed"
}
