"""Two hosts of a job that are one machine, and a command that was started from one on the other through its door
(`torpor rsh`). Numbered lines go there and come back, on standard output and on standard error, until the file GO is
there; every line is looked at. Then the command says how many it has seen, and ends with a status of its own.

    through_door.py GO
"""

import hashlib
import os
import signal
import subprocess
import sys
import threading

from torpor.launch import door
from torpor.link import secret

HOSTS = {"here": "127.0.0.2", "there": "127.0.0.3"}
ECHO = """
import hashlib, sys
count = 0
for line in sys.stdin.buffer:
    number, code = line.split()
    assert int(number) == count and code.decode() == hashlib.md5(number).hexdigest(), line
    count += 1
    sys.stdout.buffer.write(b"%d %s\\n" % (count, hashlib.md5(b"%d" % count).hexdigest().encode()))
    if count % 7 == 0:
        sys.stdout.flush()
        sys.stderr.write(f"{count}\\n")
        sys.stderr.flush()
sys.stdout.flush()
sys.exit(count % 100 + 1)
"""


def code(number: int) -> str:
    return hashlib.md5(str(number).encode()).hexdigest()


def main() -> None:
    go = sys.argv[1]
    key = secret.fresh()
    doors = {name: door.start(key, name, address, os.environb) for name, address in HOSTS.items()}
    for each in doors.values():
        door.introduce(each, {name: (HOSTS[name], doors[name].port) for name in HOSTS})
    os.environ[door.DOOR] = doors["here"].socket
    os.environ["ECHO"] = ECHO
    command = subprocess.Popen(
        [sys.executable, "-m", "torpor", "rsh", "-x", "there", f"exec {sys.executable} -c \"$ECHO\""],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    said = command.stdin, command.stdout, command.stderr
    assert said[0] and said[1] and said[2]
    sent = 0

    def send() -> None:
        nonlocal sent
        while sent < 20000 or not os.path.exists(go):
            said[0].write(f"{sent} {code(sent)}\n".encode())
            sent += 1
        said[0].close()

    def complaints() -> None:
        seen = 0
        for line in said[2]:
            seen += 7
            assert int(line) == seen, (line, seen)
        faults.append(seen)

    faults: list[int] = []
    threads = [threading.Thread(target=send), threading.Thread(target=complaints)]
    for thread in threads:
        thread.start()
    seen = 0
    for line in said[1]:
        seen += 1
        number, digest = line.split()
        assert int(number) == seen and digest.decode() == code(seen), (line, seen)
        if seen == 5000:
            print("READY", flush=True)
    for thread in threads:
        thread.join()
    status = command.wait()
    assert seen == sent and faults == [sent // 7 * 7], (seen, sent, faults)
    assert status == sent % 100 + 1, (status, sent)
    for each in doors.values():
        os.kill(each.pid, signal.SIGTERM)
        os.waitpid(each.pid, 0)
    print("OK", flush=True)


main()
