#!/usr/bin/env bash
# Installs the Slurm that the tests start: its daemons, its commands and munge. Does nothing where they are present.
# The services that the packages bring are neither used nor in the way: without a configuration Slurm's stay off.
set -euo pipefail
PATH="$PATH:/usr/sbin:/sbin"
packages="slurmctld slurmd slurm-client munge"

present() {
  for program in slurmctld slurmd sbatch munged; do command -v $program >/dev/null || return; done
}
give_up() {
  echo "error: Slurm is not installed and $1; have the packages $packages installed" >&2
  exit 1
}
as_root() {
  if [ "$(id -u)" = 0 ]; then env "$@"; else sudo -n env "$@"; fi
}

present && exit
command -v apt-get >/dev/null || give_up "there is no apt-get here"
as_root true 2>/dev/null || give_up "that takes root, or sudo without a password"
as_root apt-get -qq update || echo "apt-get update failed; going on with the lists of packages that are here" >&2
# shellcheck disable=SC2086
as_root DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $packages >/dev/null ||
  give_up "apt-get cannot install it"
present || give_up "the packages did not bring it"
