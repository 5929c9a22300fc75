#!/usr/bin/env bash
# Edit these three lines, or set them in the environment.
BIN=${BIN:-.venv/bin}  # of the environment with cdt
CPUS=${CPUS:-1}        # per node: how many workers each may have
PORT=${PORT:-6390}     # the first of five free ports, not from 10002 to 19999
#
# Two Ray nodes on this machine, to try a cluster: launch/local-two-nodes.sh [COMMAND...]
# COMMAND finds the cluster by `--address auto`. Without a command, the nodes run until Ctrl-C. The script stops only
# processes that it has started.
set -euo pipefail

home=$(mktemp -d /tmp/cdt-XXXXXX) # holds sockets, whose paths must be short
nodes=()

stop() {
  trap '' INT TERM
  # Each node is a process group of its own.
  for node in "${nodes[@]}"; do kill -TERM "$node" 2>/dev/null || true; done
  for _ in $(seq 50); do
    alive=()
    for node in "${nodes[@]}"; do if kill -0 -- "-$node" 2>/dev/null; then alive+=("$node"); fi; done
    if [ ${#alive[@]} -eq 0 ]; then break; fi
    sleep 0.2
  done
  for node in "${nodes[@]}"; do kill -KILL -- "-$node" 2>/dev/null || true; done
  pkill -KILL -f -- "$home/" || true # processes that left their group; only this cluster uses the path
  rm -rf "$home"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

(umask 077 && "$BIN/python" -c 'import secrets; print(secrets.token_hex(32), end="")' >"$home/token")
PATH=$(cd "$BIN" && pwd):$PATH # jobs call `python`
export PATH RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$home/token RAY_DISABLE_IMPORT_WARNING=1 RAY_USAGE_STATS_ENABLED=0

join() { # NAME OPTIONS...: starts a node in the background and waits until it has started
  local name=$1 node
  shift
  for _ in 1 2 3; do # Ray's timeout is half a minute, too short on a busy machine
    setsid "$BIN/ray" start --block --num-cpus="$CPUS" "$@" >"$home/$name.log" 2>&1 &
    node=$!
    nodes+=("$node")
    while kill -0 "$node" 2>/dev/null; do
      if grep -qs 'Ray runtime started' "$home/$name.log"; then return; fi
      sleep 0.5
    done
    kill -KILL -- "-$node" 2>/dev/null || true
  done
  cat "$home/$name.log" >&2
  exit 1
}

join head --head --node-ip-address=127.0.0.1 --port="$PORT" --temp-dir="$home/ray" \
  --dashboard-host=127.0.0.1 --dashboard-port="$((PORT + 1))" --ray-client-server-port="$((PORT + 2))" \
  --dashboard-agent-listen-port="$((PORT + 3))"
join second --address="127.0.0.1:$PORT" --node-ip-address=127.0.0.2 --temp-dir="$home/second" \
  --dashboard-agent-listen-port="$((PORT + 4))"
export RAY_ADDRESS=127.0.0.1:$PORT RAY_API_SERVER_ADDRESS=http://127.0.0.1:$((PORT + 1))

if [ $# -gt 0 ]; then
  status=0
  "$@" & # in the background, so that the traps below run at once
  command=$!
  trap 'kill -INT "$command"' INT
  trap 'kill -TERM "$command"' TERM
  while kill -0 "$command" 2>/dev/null; do wait "$command" && status=0 || status=$?; done
  exit "$status"
fi
cat <<TEXT
two nodes; in another shell, and end this one with Ctrl-C:
  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$RAY_AUTH_TOKEN_PATH
  $BIN/cdt train CONFIG --address $RAY_ADDRESS
  $BIN/cdt submit CONFIG --address $RAY_API_SERVER_ADDRESS --follow
TEXT
wait
