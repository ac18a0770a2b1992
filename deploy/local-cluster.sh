#!/usr/bin/env bash
# Run a job on a Dask cluster of processes on this machine, and take the cluster down afterwards.
#
#   deploy/local-cluster.sh JOB.yaml [WORKERS [THREADS_OF_A_WORKER]]
#
# `patchloom`, `dask` and `python` must be those of one environment: activate it first.
set -euo pipefail

job=${1:?usage: $0 JOB.yaml [WORKERS [THREADS_OF_A_WORKER]]}
workers=${2:-2}
threads=${3:-1}

place=$(mktemp -d)
running=()
finish() {
    # Workers first: they take their leave of the scheduler.
    for ((k = ${#running[@]} - 1; k >= 0; k--)); do
        kill "${running[k]}" 2>/dev/null || true
        wait "${running[k]}" 2>/dev/null || true
    done
    rm -rf "$place"
}
trap finish EXIT

dask scheduler --host 127.0.0.1 --port 0 --no-dashboard \
    --scheduler-file "$place/scheduler.json" >"$place/scheduler.log" 2>&1 &
running+=($!)
dask worker --scheduler-file "$place/scheduler.json" --nworkers "$workers" --nthreads "$threads" \
    --no-dashboard --local-directory "$place" --death-timeout 60 >"$place/workers.log" 2>&1 &
running+=($!)

for _ in $(seq 60); do
    [ -s "$place/scheduler.json" ] && break
    kill -0 "${running[0]}" 2>/dev/null || { cat "$place/scheduler.log" >&2; exit 1; }
    sleep 1
done
address=$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["address"])' \
    "$place/scheduler.json")

patchloom run "$job" --scheduler "$address"
