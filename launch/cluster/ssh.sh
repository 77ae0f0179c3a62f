#!/usr/bin/env bash
# Trains on hosts that can be reached over ssh, one process a host:
#
#   launch/cluster/ssh.sh [--dry_run] HOSTS FOLDER --config configs/music.py:base --config.run_dir=/shared/run
#
# HOSTS is a file with the name of a host a line, the first of which the others must reach at port $PORT (1234). FOLDER
# is the checkout on every host; $PYTHON (python) is what runs there. Ends when all have ended: with 0, with 1 where one
# has an error that has to be mended, else with 75, which means: start it again. Ctrl-C and SIGTERM have all hosts save.
set -euo pipefail

dry_run=
if [[ ${1:-} == --dry_run ]]; then
  dry_run=yes
  shift
fi
if [[ $# -lt 3 ]]; then
  sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
mapfile -t hosts < <(sed 's/#.*//' "$1" | awk 'NF {print $1}')
folder=$2
shift 2
[[ ${#hosts[@]} -gt 0 ]] || { echo "ssh.sh: there is no host in the list" >&2; exit 2; }

running=()
address=${hosts[0]#*@}:${PORT:-1234}
stop() {
  for host in "${hosts[@]}"; do
    ssh "$host" "pkill -TERM -f $(printf %q "^${PYTHON:-python} launch/train.py .*--coordinator=$address ")" </dev/null || true
  done
}
trap stop INT TERM
for index in "${!hosts[@]}"; do
  train=("${PYTHON:-python}" launch/train.py "$@")
  train+=("--coordinator=$address" "--num_processes=${#hosts[@]}" "--process_id=$index")
  # Quoted once more, for the shell of the other host.
  command=$(printf 'cd %q && exec' "$folder"; printf ' %q' "${train[@]}")
  if [[ $dry_run ]]; then
    echo "ssh ${hosts[index]} $(printf %q "$command")"
    continue
  fi
  ssh "${hosts[index]}" "$command" </dev/null > >(sed -u "s|^|${hosts[index]}: |") 2>&1 &
  running+=($!)
done

code=0
for process in ${running[@]+"${running[@]}"}; do
  while
    ended=0
    wait "$process" || ended=$?
    kill -0 "$process" 2>/dev/null # a signal ended the waiting
  do :; done
  case $ended in
    0) ;;
    1) code=1 ;;
    *) [[ $code -eq 1 ]] || code=75 ;; # 255: the connection was lost
  esac
done
exit $code
