# bash with background jobs, a coprocess, traps, here-documents, job control and wait.
# Usage: work.sh GO PLACE. Neither it nor its background jobs end before GO is there.
set -u
trap 'got=1' USR1
got=0
go=$1
await() { until [ -e "$go" ]; do sleep 0.01; done; }
work() { # a background job: a chain of checksums
    local h=$1 i
    for ((i = 0; i < 40; i++)); do
        [ "$i" = 30 ] && await
        h=$(printf '%s %s' "$h" "$i" | sha256sum | cut -c1-64); sleep 0.01
    done
    echo "$h" >"$2"
}
place=$2.$$
work one "$place.1" & a=$!
work two "$place.2" & b=$!
(sleep 0.3; exit 5) & c=$!
coproc ECHO { while read -r line; do echo "<$line>"; done; }
n=0
for ((i = 0; i < 120; i++)); do
    [ "$i" = 100 ] && await
    echo "$i" >&"${ECHO[1]}"; read -r back <&"${ECHO[0]}"
    [ "$back" = "<$i>" ] || { echo "FAIL: coprocess said $back"; exit 1; }
    n=$((n + i)); [ "$i" = 20 ] && echo READY; sleep 0.01
done
wait "$c"; [ $? = 5 ] || { echo "FAIL: status of a background job"; exit 1; }
wait "$a" && wait "$b" || { echo "FAIL: wait"; exit 1; }
kill -USR1 $$; [ $got = 1 ] || { echo "FAIL: trap"; exit 1; }
echo "RESULT $n $(cat "$place.1" "$place.2" | sha256sum | cut -c1-64)"
echo OK
