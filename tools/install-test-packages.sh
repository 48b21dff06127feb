#!/bin/sh
# The system packages that the test programs need. As root on Debian or Ubuntu whatever is missing is installed; an
# ordinary user is told what is missing, and the tests that need it skip themselves and say so.
set -eu

missing=
commands=
need() { # need COMMAND PACKAGE
    if ! command -v "$1" >/dev/null 2>&1; then
        case " $missing " in *" $2 "*) ;; *) missing="$missing $2" ;; esac
        commands="$commands $1"
    fi
}
need gcc gcc
need g++ g++
need make make
need go golang-go
need javac default-jdk-headless
need java default-jdk-headless
need node nodejs
need perl perl
need sqlite3 sqlite3
need awk mawk
need gzip gzip
need bash bash
need ps procps
need pstree psmisc
need tmux tmux
need setpriv util-linux
need script bsdutils
need vim vim
need redis-server redis-server
need nginx nginx-light
need wrk wrk
# PostgreSQL's programs are in a folder of their version.
ls /usr/lib/postgresql/*/bin/pg_amcheck >/dev/null 2>&1 || need pg_amcheck postgresql
need useradd passwd
need ipcrm util-linux
need strace strace
need gdb gdb
need unshare util-linux
need munged munge
need slurmctld slurmctld
need slurmd slurmd
need sbatch slurm-client
need sshd openssh-server
need ssh openssh-client
need ip iproute2
need mpicc.mpich libmpich-dev
need mpirun.mpich mpich
need mpicc.openmpi libopenmpi-dev
need mpirun.openmpi openmpi-bin
# Headers and libraries have no command: ask the compiler.
if command -v gcc >/dev/null 2>&1; then
    printf '#include <stdio.h>\nint main(void){return 0;}\n' |
        gcc -static -x c - -o /dev/null 2>/dev/null || { missing="$missing libc6-dev"; commands="$commands libc"; }
    printf 'int main(void){\n#pragma omp parallel\n;return 0;}\n' |
        gcc -fopenmp -x c - -o /dev/null 2>/dev/null || { missing="$missing libgomp1"; commands="$commands OpenMP"; }
else
    missing="$missing libc6-dev libgomp1"
fi

[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ]; then
    echo "packages: not there:$commands. The tests that need them are skipped (as root: apt-get install$missing)"
    exit 0
fi
if ! command -v apt-get >/dev/null 2>&1; then
    echo "packages: not there:$commands. This is no Debian: install them, or the tests that need them are skipped"
    exit 0
fi
echo "packages: installing$missing"
# The tests start what they need of it themselves: no service is to be started by its package.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
apt-get update -qq || echo "packages: apt-get update failed; trying with what is known"
for package in $missing; do # one by one: what is not to be had must not keep the others away
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" >/dev/null 2>&1 ||
        echo "packages: $package could not be installed; the tests that need it are skipped"
done
