"""A program whose state is in a folder: files that it opens for a moment, replaces by renaming, removes and makes anew,
in subfolders that come and go. At every step it compares all of the folder with what it remembers.

Usage: folder.py GO FOLDER. Ends when GO appears.
"""

import os
import random
import sys

GO, TOP = sys.argv[1:3]
chance = random.Random(1)
known: dict[str, bytes] = {}
os.makedirs(TOP)


def found() -> dict[str, bytes]:
    out = {}
    for at, _, names in os.walk(TOP):
        for name in names:
            path = os.path.join(at, name)
            if os.path.islink(path):
                out[os.path.relpath(path, TOP)] = os.readlink(path).encode()
            else:
                with open(path, "rb") as f:
                    out[os.path.relpath(path, TOP)] = f.read()
    return out


n = 0
while not os.path.exists(GO) or n < 50:
    n += 1
    folder = os.path.join(TOP, f"f{chance.randrange(4)}")
    name = f"{chance.randrange(8)}"
    path, key = os.path.join(folder, name), os.path.relpath(os.path.join(folder, name), TOP)
    os.makedirs(folder, exist_ok=True)
    if key in known and chance.random() < 0.4:
        os.unlink(path)
        del known[key]
        if not os.listdir(folder):
            os.rmdir(folder)
    elif key in known or chance.random() < 0.8:
        data = chance.randbytes(chance.randrange(5000))
        with open(path + ".new", "wb") as f:
            f.write(data)
        os.rename(path + ".new", path)
        known[key] = data
    else:
        os.symlink(f"to-{n}", path)
        known[key] = f"to-{n}".encode()
    if found() != known:
        there = found()
        wrong = sorted(key for key in {*there, *known} if there.get(key) != known.get(key))
        sys.exit(f"FAIL: after {n} steps {wrong} are not what they were")
    if n == 50:
        print("READY", flush=True)
print("OK")
