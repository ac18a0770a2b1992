#!/usr/bin/env bash
# The smoke job on a cluster, from an empty object store to a verified store of patches.
#
#   deploy/smoke/run.sh tcp://SCHEDULER:8786
set -euo pipefail

scheduler=${1:?usage: $0 tcp://SCHEDULER:8786}
here=$(dirname "$0")

python "$here/prepare.py"
patchloom run "$here/job.yaml" --scheduler "$scheduler"
# Again: everything is there, nothing is made.
patchloom run "$here/job.yaml" --scheduler "$scheduler"
patchloom verify s3://smoke/train.zarr --job "$here/job.yaml"
