#!/bin/sh
# LeRobot in a virtual environment of its own, build/benchmarks/lerobot. For its fastest video reader install FFmpeg 4 to 7
# with your system's package manager; without it LeRobot reads videos by PyAV.
set -e
cd "$(dirname "$0")/../.."
environment=build/benchmarks/lerobot
[ -e $environment/.ready ] && exit 0
echo "Setting up $environment: some minutes, and several GB for PyTorch with CUDA"
"${PYTHON:-python3}" -m venv $environment
$environment/bin/python -m pip install --quiet --disable-pip-version-check lerobot==0.4.4
touch $environment/.ready
