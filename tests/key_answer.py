#!/usr/bin/env python3
"""Milliseconds from a key to its picture while tokens stream: key_answer.py ROUNDS LIMIT COMMAND... (a terminal of 200x50). The command is a
workbench with a prompt and a model that is there at once; `R` starts the run, digits change the screen, whose name comes in capitals.
Ends with 1 when nine in ten answers took longer than LIMIT."""
import fcntl, os, pty, re, select, struct, sys, termios, time

rounds, limit, command = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
pid, fd = pty.fork()
if pid == 0:
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
    os.execvp(command[0], command)


def until(words, seconds):
    """reads until any of the words was written; milliseconds, None: it did not come"""
    start, seen = time.monotonic(), b""
    while time.monotonic() < start + seconds:
        if select.select([fd], [], [], 0.05)[0]:
            try:
                seen += os.read(fd, 65536)
            except OSError:
                return None
        plain = re.sub(rb"\x1b\[[0-9;?<]*[a-zA-Z]", b"", seen)
        if any(word in plain for word in words):
            return 1e3 * (time.monotonic() - start)
    return None


def press(key, word, seconds=10):
    os.write(fd, key)
    return until([word], seconds)


ok = until([b"ready"], 60) is not None and press(b"R", b"tok/s", 60) is not None
times = []
for i in range(rounds):
    for key, word in ((b"2", b"HEADS"), (b"4", b"PLAN"), (b"6", b"MEMORY"), (b"1", b"RUN")):
        times.append(press(key, word))
        until([b"\0never"], 0.03 + 0.013 * (i % 7))  # at any time between two pictures of the run
os.write(fd, b"\x1b:quit!\r")
until([b"\0never"], 1)
if not ok or None in times:
    sys.exit("key_answer: no answer came")
times.sort()
p90 = times[len(times) * 9 // 10]
print("keys answered after %.1f ms while tokens stream (median of %d; nine in ten within %.1f)" % (times[len(times) // 2], len(times), p90))
sys.exit(p90 > limit)
