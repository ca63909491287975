#!/usr/bin/env bash
# A Ray head on this machine for `ray job submit`, on ports of its own, beside any other Ray that runs here.
#
#   cluster/local.sh start               start the head (nothing happens if it runs already)
#   cluster/local.sh submit ARGS...      ray job submit -- python -m fr3e_async.main ARGS..., from this repository
#   cluster/local.sh ray ARGS...         any ray command against the head, e.g. `ray job list`, `ray job stop ID`
#   eval "$(cluster/local.sh env)"       the same for this shell, to call `ray job submit` yourself
#   cluster/local.sh status | stop
#
# Settings from the environment: FR3E_PORT_OFFSET (0; added to every port), FR3E_HEAD_CPUS (number of cores), FR3E_HEAD_DIR
# (a short path, because sockets are made in it), FR3E_STOP_WAIT_S (300), RAY_AUTH_MODE (token).
#
# Authentication: a job port runs what it is sent, so it is guarded even on loopback. Head and clients must agree on RAY_AUTH_MODE:
# Ray turns the head's on by itself once a token file exists, but the clients' only by the variable. Both get it from here.
# RAY_AUTH_MODE=disabled cluster/local.sh start (and submit, stop) goes without.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
offset=${FR3E_PORT_OFFSET:-0}
dir=${FR3E_HEAD_DIR:-/tmp/fr3e-ray-$(id -u)-$offset}
pid_file=$dir/head.pid
log_file=$dir/head.log
dashboard_port=$((8301 + offset))
if [[ -x $root/.venv/bin/ray ]]; then
  PATH=$root/.venv/bin:$PATH # the jobs' `python` too
fi
export PATH
export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token}
export RAY_API_SERVER_ADDRESS=http://127.0.0.1:$dashboard_port
export RAY_USAGE_STATS_ENABLED=0
unset RAY_ADDRESS # it would win over the address above

die() {
  echo "local.sh: $*" >&2
  exit 1
}

running() {
  [[ -f $pid_file ]] && kill -0 "$(<"$pid_file")" 2>/dev/null
}

answers() {
  (exec 3<>"/dev/tcp/127.0.0.1/$dashboard_port") 2>/dev/null
}

# Processes of this head: every one of them has the head's own directory on its command line, or descends from one that has.
members() {
  pgrep -u "$(id -u)" -f -- "--temp-dir=$dir/|--temp_dir=$dir/|$dir/r/session_" || true
}

start() {
  if running; then
    echo "running already: pid $(<"$pid_file"), $RAY_API_SERVER_ADDRESS"
    return
  fi
  if answers; then
    die "port $dashboard_port is taken; choose another set with FR3E_PORT_OFFSET"
  fi
  mkdir -p "$dir"
  chmod 700 "$dir"
  if [[ $RAY_AUTH_MODE == token ]]; then
    (umask 077 && ray get-auth-token --generate >/dev/null) # Ray itself would let everyone read it
  fi
  # Every port lies outside of 10002-19999, where Ray would put its workers by default.
  setsid ray start --head --block --disable-usage-stats \
    --port=$((6601 + offset)) --dashboard-host=127.0.0.1 --dashboard-port="$dashboard_port" \
    --ray-client-server-port=$((20601 + offset)) --dashboard-agent-listen-port=$((52601 + offset)) \
    --metrics-export-port=$((9601 + offset)) --min-worker-port=$((21000 + offset)) --max-worker-port=$((21999 + offset)) \
    --temp-dir="$dir/r" --num-cpus="${FR3E_HEAD_CPUS:-$(nproc)}" --object-store-memory=1000000000 \
    </dev/null >"$log_file" 2>&1 &
  echo $! >"$pid_file"
  for _ in $(seq 120); do
    running || {
      tail -n 20 "$log_file" >&2
      die "the head ended while starting; its log is $log_file"
    }
    if answers; then
      echo "started: pid $(<"$pid_file"), $RAY_API_SERVER_ADDRESS"
      return
    fi
    sleep 1
  done
  stop
  die "the head did not answer in 120 s; its log is $log_file"
}

stop() {
  if running; then
    kill -TERM "$(<"$pid_file")"
    for _ in $(seq 20); do
      running || break
      sleep 1
    done
  fi
  local pid
  for pid in $(members); do
    kill -KILL "$pid" 2>/dev/null || true
  done
  rm -rf "$pid_file" "$dir/r"
  echo "stopped"
}

status() {
  if running; then
    echo "running: pid $(<"$pid_file"), $RAY_API_SERVER_ADDRESS"
  else
    echo "not running"
    return 1
  fi
}

submit() {
  running || die "no head; begin with: cluster/local.sh start"
  cd "$root"
  # Without the variable Ray kills the driver 3 s after `ray job stop`, in the middle of its last checkpoint.
  exec ray job submit --working-dir . \
    --runtime-env-json "{\"env_vars\": {\"RAY_JOB_STOP_WAIT_TIME_S\": \"${FR3E_STOP_WAIT_S:-300}\"}}" \
    -- python -m fr3e_async.main "$@"
}

command=${1:-}
shift || true
case $command in
  start | stop | status) "$command" ;;
  submit) submit "$@" ;;
  ray) exec ray "$@" ;;
  env)
    for name in PATH RAY_AUTH_MODE RAY_API_SERVER_ADDRESS RAY_USAGE_STATS_ENABLED; do
      printf 'export %s=%q\n' "$name" "${!name}"
    done
    echo "unset RAY_ADDRESS"
    ;;
  *) die "usage: cluster/local.sh start | submit ARGS... | ray ARGS... | env | status | stop" ;;
esac
