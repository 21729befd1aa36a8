#!/usr/bin/env bash
# Three members of a private network and a stranger, each on a machine of its own, made of network namespaces: the members find
# each other through the one address they are given, and reserve slots at the first of them; the stranger is refused.
# Needs root, Linux and `ip`. Everything is gone when it ends.
#
#     cargo build --release && examples/cluster/run.sh          shows it and ends
#     examples/cluster/run.sh --hold                            the same, and waits, so that you can look around
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
readonly here

# The program: the one that is named, else the newest build.
readonly edgevpn=${EDGEVPN:-$(ls -t "$here"/../../target/{release,debug}/edgevpn 2>/dev/null | head -n 1)}

# Namespaces carry the number of this process, so that two of these do not meet.
readonly name=edgevpn-cluster-$$
folder=

main() {
  [ "$(id -u)" -eq 0 ] || fail "this needs root, for network namespaces"
  command -v ip >/dev/null || fail "this needs the command ip (iproute2)"
  [ -x "$edgevpn" ] || fail "build the program first: cargo build --release"
  folder=$(mktemp -d)
  trap 'clean_up' EXIT
  trap 'exit 130' INT TERM
  switch

  say "A token: whoever has it can be a member."
  (umask 077 && "$edgevpn" token new >"$folder/token")
  "$edgevpn" token inspect "$folder/token"

  say "The hub is told the token and nothing else."
  machine hub 1
  start hub "$(network)"
  local hub_id
  hub_id=$(peer_id hub)
  local hub=/ip4/10.90.0.1/tcp/4501/p2p/$hub_id

  say "Two more members know the token and the hub's address."
  machine alice 2
  machine bob 3
  for member in alice bob; do
    start "$member" "$(network)
[relay]
peers = [\"$hub\"]
[[peer]]
id = \"$hub_id\"
addresses = [\"$hub\"]"
  done
  for member in hub alice bob; do
    until_at "$member" members 2 "$member knows both others"
  done
  until_at hub reservations 2 "both hold a reservation"

  say "A stranger knows the address too, and no token."
  machine stranger 4
  start stranger "[relay]
peers = [\"$hub\"]"
  until_at hub denied 1 "the stranger was refused"

  say "What the hub says:"
  at hub status
  say "Why alice may reserve, and the stranger may not:"
  at hub explain --why "$(peer_id alice)" reserve
  at hub explain --why "$(peer_id stranger)" reserve

  if [ "${1:-}" = --hold ]; then
    say "Look around, for instance:  $edgevpn status -c $folder/alice/edgevpn.toml"
    read -r -p "Enter ends it. "
  fi
  say "Three members, and a stranger refused."
}

# The network as every member has it in its file.
network() {
  cat <<END
[network]
token_file = "$folder/token"
[discovery]
dht = false   # no public network from inside a namespace
mdns = false  # nor one link between all: the hub's address must do
[acl]
bootstrap = "0s"
END
}

# A machine on the switch, with address 10.90.0.NUMBER.
machine() {
  ip netns add "$name-$1"
  ip link add "$1" netns "$name" type veth peer name eth0 netns "$name-$1"
  ip -n "$name" link set "$1" master switch up
  ip -n "$name-$1" link set lo up
  ip -n "$name-$1" link set eth0 up
  ip -n "$name-$1" addr add "10.90.0.$2/24" dev eth0
}

switch() {
  ip netns add "$name"
  ip -n "$name" link add switch type bridge
  ip -n "$name" link set switch up
}

# Starts the program on a machine, with a file that begins like all of them.
start() {
  mkdir "$folder/$1"
  cat >"$folder/$1/edgevpn.toml" <<END
version = 1
[node]
name = "$1"
state_dir = "state"
[transport]
listen = ["/ip4/0.0.0.0/tcp/4501", "/ip4/0.0.0.0/udp/4501/quic-v1"]
[api]
listen = "unix:api.sock"
$2
END
  ip netns exec "$name-$1" env RUNTIME_DIRECTORY="$folder/$1/run" "$edgevpn" run -c "$folder/$1/edgevpn.toml" 2>"$folder/$1/log" &
  until_at "$1" generation 1 "$1 runs"
}

# Runs a command of the program against the node on a machine.
at() {
  local machine=$1 command=$2
  shift 2
  RUNTIME_DIRECTORY="$folder/$machine/run" "$edgevpn" "$command" -c "$folder/$machine/edgevpn.toml" "$@"
}

peer_id() {
  at "$1" status --json | sed -n 's/.*"peer_id": *"\([^"]*\)".*/\1/p' | head -n 1
}

# Waits until a number in the status of a machine is NUMBER or more: until_at MACHINE NAME NUMBER WHAT
until_at() {
  local deadline=$((SECONDS + 30)) found
  while found=$(at "$1" status --json 2>/dev/null | sed -n "s/.*\"$2\": *\([0-9]*\).*/\1/p" | head -n 1); [ "${found:-0}" -lt "$3" ]; do
    if [ "$SECONDS" -gt "$deadline" ]; then
      tail -n 20 "$folder/$1/log" >&2
      fail "never: $4"
    fi
    sleep 0.1
  done
  echo "   $4"
}

say() {
  printf '\n== %s\n' "$*"
}

fail() {
  echo "$*" >&2
  exit 1
}

clean_up() {
  local all machine
  all=$(jobs -p)
  # The nodes say goodbye; what is left after that ends with its machine.
  [ -z "$all" ] || kill $all 2>/dev/null || true
  wait
  for machine in $(ip netns list | awk -v name="$name" 'index($1, name) == 1 { print $1 }'); do
    ip netns delete "$machine"
  done
  rm -rf "$folder"
}

main "$@"
