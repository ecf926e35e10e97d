#!/usr/bin/env python3
"""Milliseconds from exec to the first picture: first_paint.py RUNS WORD COMMAND... (a terminal of 80x24, WORD: text of the picture)."""
import fcntl, os, pty, select, signal, struct, sys, termios, time


def once(word, command):
    start = time.monotonic()
    pid, fd = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        os.execvp(command[0], command)
    seen, end = b"", time.monotonic() + 60
    while word not in seen and time.monotonic() < end:
        if select.select([fd], [], [], 1)[0]:
            try:
                seen += os.read(fd, 65536)
            except OSError:
                break
    ms = 1e3 * (time.monotonic() - start)
    os.kill(pid, signal.SIGTERM)
    while True:  # what it still writes must be read, or it cannot end
        try:
            if select.select([fd], [], [], 0.01)[0] and not os.read(fd, 65536):
                break
        except OSError:
            break
        if os.waitpid(pid, os.WNOHANG)[0]:
            pid = 0
            break
    if pid:
        os.waitpid(pid, 0)
    os.close(fd)
    return ms if word in seen else None


times = [once(sys.argv[2].encode(), sys.argv[3:]) for _ in range(int(sys.argv[1]))]
if None in times:
    sys.exit("first_paint: no picture came")
times.sort()
print("first picture after %.1f ms (median of %d, %.1f to %.1f)" % (times[len(times) // 2], len(times), times[0], times[-1]))
