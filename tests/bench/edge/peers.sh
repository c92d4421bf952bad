#!/bin/sh
# Brings the peers of `cargo xtask bench edge`: HAProxy and nginx as Debian packages, the LLM routers in `.bench/venv`.
#
# For Debian and Ubuntu, as root. CIC_PYTHON names the Python to use (3.10 or newer) where `python3` is not the right
# one. No service is started: the benchmark runs its own processes on free loopback ports and ends them.
set -eu

VLLM_ROUTER=0.1.17
SGLANG_ROUTER=0.3.2

cd "$(dirname "$0")/../../.."

# Exit code 101 forbids a package to start its service (Debian's policy-rc.d). Only while we install, if nobody has.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod +x "$policy"
fi
DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends haproxy nginx-light

"${CIC_PYTHON:-python3}" -m venv .bench/venv
.bench/venv/bin/pip install --quiet "vllm-router==$VLLM_ROUTER" "sglang-router==$SGLANG_ROUTER"
