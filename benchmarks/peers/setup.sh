#!/bin/sh
# Make the virtual environments of the peers under .peers/ (git-ignored). Safe to run again: an
# environment whose pins have not changed is left alone, any other is made afresh. PYTHON names the
# interpreter (3.11; the pins below are for it).
set -eu
cd "$(dirname "$0")/../.."
python="${PYTHON:-python3.11}"

make_venv() {  # name, then its pinned packages
    where=".peers/$1"
    shift
    pins="$*"
    if [ -x "$where/bin/python" ] && [ "$(cat "$where/pins.txt" 2>/dev/null)" = "$pins" ]; then
        echo "$where: up to date"
        return
    fi
    rm -rf "$where"
    "$python" -m venv "$where"
    "$where/bin/python" -m pip install --quiet "$@"
    echo "$pins" > "$where/pins.txt"  # written last: an interrupted installation is made again
    echo "$where: made"
}

mkdir -p .peers
# d3rlpy 2.8 asks for gymnasium 1.0.0 exactly, whose MuJoCo worlds want a MuJoCo of their time.
make_venv d3rlpy torch==2.13.0 numpy==2.4.6 d3rlpy==2.8.1 "gymnasium[mujoco]==1.0.0" mujoco==3.2.7
make_venv sb3 torch==2.13.0 numpy==2.4.6 stable-baselines3==2.9.2 "gymnasium[mujoco]==1.4.0" mujoco==4.0.0
# rliable 1.2 does not import beside pandas 3; arch is its bootstrap.
make_venv rliable numpy==2.4.6 rliable==1.2.0 arch==7.2.0 "pandas==2.3.3" scipy==1.17.1
