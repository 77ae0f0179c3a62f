#!/usr/bin/env bash
# A TPU slice from Google Cloud's queue, and training on all its hosts:
#
#   export NAME=music ZONE=us-central2-b TYPE=v5litepod-64 VERSION=v2-alpha-tpuv5-lite
#   launch/cluster/tpu_vm.sh [--dry_run] create            # --spot and other flags of gcloud may follow
#   launch/cluster/tpu_vm.sh [--dry_run] setup             # this checkout to every host, and its packages
#   launch/cluster/tpu_vm.sh [--dry_run] train --config configs/music.py:base --config.run_dir=RUN_DIR
#   launch/cluster/tpu_vm.sh [--dry_run] delete
#
# RUN_DIR has to be the same place for all hosts. The same `train` goes on after a host was lost or the slice was taken
# away. $PROJECT may name another project than gcloud's.
set -euo pipefail

show() { sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2; }
run() { if [[ $dry_run ]]; then printf '%q ' "$@"; echo; else "$@"; fi; }

dry_run=
if [[ ${1:-} == --dry_run ]]; then
  dry_run=yes
  shift
fi
[[ $# -gt 0 ]] || show
action=$1
shift
: "${NAME:?of the slice, as you like}" "${ZONE:?where it is, such as us-central2-b}"
where=("--zone=$ZONE" ${PROJECT:+"--project=$PROJECT"})
tpus=(gcloud compute tpus)

on_all_hosts() { run "${tpus[@]}" tpu-vm ssh "$NAME" "${where[@]}" --worker=all "--command=$1"; }

case $action in
  create)
    : "${TYPE:?of the slice, such as v5litepod-64}" "${VERSION:?of its hosts, such as v2-alpha-tpuv5-lite}"
    run "${tpus[@]}" queued-resources create "$NAME" "--node-id=$NAME" "${where[@]}" \
      "--accelerator-type=$TYPE" "--runtime-version=$VERSION" "$@"
    state=
    until [[ $dry_run || $state == ACTIVE ]]; do
      state=$("${tpus[@]}" queued-resources describe "$NAME" "${where[@]}" '--format=value(state.state)')
      echo "$NAME: $state"
      case $state in
        FAILED | SUSPENDED) exit 1 ;;
        ACTIVE) ;;
        *) sleep 30 ;;
      esac
    done
    ;;
  setup)
    root=$(cd "$(dirname "$0")/../.." && pwd)
    archive=$(mktemp -t checkout-XXXXXX.tar.gz)
    trap 'rm -f "$archive"' EXIT
    git -C "$root" archive --format=tar.gz --output="$archive" HEAD
    run "${tpus[@]}" tpu-vm scp "$archive" "$NAME:checkout.tar.gz" "${where[@]}" --worker=all
    on_all_hosts 'mkdir -p checkout && tar -xzf checkout.tar.gz -C checkout && python3 -m venv venv &&
      venv/bin/pip install --quiet -e "checkout[tpu]"'
    ;;
  train)
    on_all_hosts "cd checkout && ../venv/bin/python launch/train.py$(printf ' %q' "$@")"
    ;;
  delete)
    run "${tpus[@]}" queued-resources delete "$NAME" "${where[@]}" --force --quiet
    ;;
  *) show ;;
esac
