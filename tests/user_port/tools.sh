#!/bin/sh
# Runs tools that others wrote against an edge: `tools.sh HOST:PORT [HOST:TLS_PORT]`. One that is not installed is
# skipped and named. slowhttptest, h2load and nghttp come with Debian (slowhttptest, nghttp2-client), schemathesis and
# h2rs with pip. docs/edge.md has what they said last.
set -u
edge=${1:?usage: tools.sh HOST:PORT [HOST:TLS_PORT]}
tls=${2:-}
here=$(dirname "$0")
body=$(mktemp)
trap 'rm -f "$body"' EXIT
printf '{"model":"tiny","prompt":"a","max_tokens":1}' > "$body"

has() {
    command -v "$1" > /dev/null && return 0
    echo "skipped: no $1 here"
    return 1
}

if has h2load; then
    for protocol in h2c http/1.1; do
        echo "== h2load, $protocol: 5000 completions on 50 connections"
        h2load -p "$protocol" -n 5000 -c 50 -m 20 -d "$body" -H 'content-type: application/json' \
            "http://$edge/v1/completions" | grep -E 'requests:|status codes|finished'
    done
    if [ -n "$tls" ]; then
        echo "== h2load, TLS: 5000 completions on 50 connections"
        h2load -n 5000 -c 50 -m 20 -d "$body" -H 'content-type: application/json' "https://$tls/v1/completions" |
            grep -E 'requests:|status codes|finished|Application'
    fi
fi
if has slowhttptest; then
    for mode in '-H -i 1 -x 24' '-B -i 1 -s 8192 -x 10' '-X -w 512 -y 1024 -n 5 -z 32 -k 3' '-R -t HEAD'; do
        echo "== slowhttptest $mode: 1000 connections"
        # shellcheck disable=SC2086
        slowhttptest -c 1000 -r 500 -l 90 -p 3 $mode -u "http://$edge/v1/models" 2>&1 |
            sed 's/\x1b\[[0-9;]*[A-Za-z]//g' | grep -aE 'service available|Test ended|Exit status' | tail -3
    done
fi
if has schemathesis; then
    echo "== schemathesis: no answer is a server's error"
    schemathesis run "$here/openapi.json" --url "http://$edge" --checks not_a_server_error --max-examples 200 \
        --seed 1 --no-color 2>&1 | tail -25
fi
if [ -n "$tls" ] && has h2rs; then
    echo "== h2rs: smuggling through HTTP/2"
    h2rs -t "${tls%:*}" -p "${tls##*:}" -m 3 2>&1 | grep -E '^(Not|Got|.*otenc)'
fi
