#!/usr/bin/env bash
#PBS -N patchloom
#PBS -l select=4:ncpus=4:mem=8gb
#PBS -l walltime=04:00:00
#PBS -j oe
#PBS -r y
#
# Run a job on a Dask cluster inside one PBS job: a worker on each chunk of the select line.
#
#   qsub -v JOB=job.yaml,THREADS=4,MEMORY=8GB deploy/pbs.sh
#
# Submit from the folder of the job, with your environment active: the script takes the Python that VIRTUAL_ENV or
# CONDA_PREFIX names at submission if you hand it over (qsub -V), else the one in PATH. Sources, output, environment
# and that folder must be visible on all nodes under the same paths. If time runs out or a node is lost, submit the
# same line again: only what is missing is made.
set -euo pipefail

cd "${PBS_O_WORKDIR:?to be submitted with qsub}"
job=${JOB:?usage: qsub -v JOB=job.yaml deploy/pbs.sh}
threads=${THREADS:-4}
memory=${MEMORY:-8GB}
home=${VIRTUAL_ENV:-${CONDA_PREFIX:-}}
[ -z "$home" ] || PATH=$home/bin:$PATH

place=$(mktemp -d "$PWD/.patchloom-${PBS_JOBID%%.*}-XXXXXX")
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

dask scheduler --host "$(hostname)" --port 0 --no-dashboard \
    --scheduler-file "$place/scheduler.json" >"$place/scheduler.log" 2>&1 &
running+=($!)

# pbsdsh starts the worker once on each chunk, in a nearly empty environment: a file brings it there.
{
    printf 'export PATH=%q\n' "$PATH"
    export -p | grep -E '^declare -x (AWS|GOOGLE|AZURE|DASK|PYTHONPATH|LD_LIBRARY_PATH)' || true
    printf 'cd %q\n' "$PWD"
    printf 'exec dask worker --scheduler-file %q --nworkers 1 --nthreads %q --memory-limit %q' \
        "$place/scheduler.json" "$threads" "$memory"
    # $TMPDIR is the node's own, so it is read there.
    # shellcheck disable=SC2016
    printf ' --no-dashboard --death-timeout 120 --local-directory "${TMPDIR:-/tmp}"\n'
} >"$place/worker.sh"
chmod 600 "$place/worker.sh"
pbsdsh -- bash "$place/worker.sh" &
running+=($!)

for _ in $(seq 120); do
    [ -s "$place/scheduler.json" ] && break
    kill -0 "${running[0]}" 2>/dev/null || { cat "$place/scheduler.log" >&2; exit 1; }
    sleep 1
done
address=$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["address"])' \
    "$place/scheduler.json")

patchloom run "$job" --scheduler "$address"
