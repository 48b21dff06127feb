# bash with background jobs, a coprocess, traps, here-documents, job control and wait.
set -u
trap 'got=1' USR1
got=0
work() { # a background job: a chain of checksums
    local h=$1 i
    for ((i = 0; i < 40; i++)); do h=$(printf '%s %s' "$h" "$i" | sha256sum | cut -c1-64); sleep 0.01; done
    echo "$h" >"$2"
}
place=$1.$$
work one "$place.1" & a=$!
work two "$place.2" & b=$!
(sleep 0.3; exit 5) & c=$!
coproc ECHO { while read -r line; do echo "<$line>"; done; }
n=0
for ((i = 0; i < 160; i++)); do
    echo "$i" >&"${ECHO[1]}"; read -r back <&"${ECHO[0]}"
    [ "$back" = "<$i>" ] || { echo "FAIL: coprocess said $back"; exit 1; }
    n=$((n + i)); [ "$i" = 20 ] && echo READY; sleep 0.01
done
wait "$c"; [ $? = 5 ] || { echo "FAIL: status of a background job"; exit 1; }
wait "$a" && wait "$b" || { echo "FAIL: wait"; exit 1; }
kill -USR1 $$; [ $got = 1 ] || { echo "FAIL: trap"; exit 1; }
echo "RESULT $n $(cat "$place.1" "$place.2" | sha256sum | cut -c1-64)"
echo OK
