"""The wire from the other side: an engine process driven from Python, with the table of core/engine/wire.h read as text.

An independent encoder and decoder (struct, not the preprocessor), so that both agreeing is worth something.

    with Engine(["build/moascope", "engine"]) as e:
        welcome = e.hello()
        loaded = e.ask("LOAD", path="tiny.gguf", device="cpu")
        for name, m in e.stream("RUN", text="Hello", n_gen=8, fresh=1, temp=0.0): ...
"""
import os
import re
import select
import struct
import subprocess
import time

HEADER = 16
MAX = 16 << 20
SCALARS = {"u32": "<I", "i32": "<i", "u64": "<Q", "f32": "<f", "f64": "<d"}
ARRAYS = {"str": None, "u8s": None, "i32s": "i", "f32s": "f", "f64s": "d"}


def read_table(path=os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "core", "engine", "wire.h")):
    text = open(path, encoding="utf-8").read().replace("\\\n", " ")
    fields = {}
    for name, body in re.findall(r"#define MOA_MSG_(\w+)\(F\)(.*)", text):
        fields[name] = re.findall(r"F\((\w+),\s*(\w+)\)", body)
    numbers = {}
    body = re.search(r"#define MOA_WIRE_MAP\(X\)(.*)", text).group(1)
    for name, _, number in re.findall(r"X\((\w+),\s*(\w+),\s*(\d+)\)", body):
        numbers[name] = int(number)
    assert set(numbers) == set(fields), "a message without a row, or a row without a message"
    return fields, numbers, int(re.search(r"MOA_WIRE_VERSION = (\d+)", text).group(1))


FIELDS, NUMBERS, VERSION = read_table()
NAMES = {number: name for name, number in NUMBERS.items()}


def encode(name, job=0, /, **values):
    out = bytearray(HEADER)
    for kind, field in FIELDS[name]:
        v = values.pop(field, 0 if kind in SCALARS else b"")
        if kind in SCALARS:
            out += struct.pack(SCALARS[kind], v)
            continue
        if isinstance(v, str):
            v = v.encode()
        code = ARRAYS[kind]
        out += struct.pack("<I", len(v))
        out += bytes(-len(out) % 8)
        out += bytes(v) if code is None else struct.pack(f"<{len(v)}{code}", *v)
        out += bytes(-len(out) % 8)
    assert not values, f"{name} has no field {list(values)}"
    out += bytes(-len(out) % 8)
    struct.pack_into("<IHHII", out, 0, len(out) - HEADER, NUMBERS[name], 0, job, 0)
    return bytes(out)


def decode(frame):
    size, number, zero16, job, zero32 = struct.unpack_from("<IHHII", frame)
    assert zero16 == 0 and zero32 == 0 and size == len(frame) - HEADER and size % 8 == 0
    name, at, out = NAMES[number], HEADER, {}
    for kind, field in FIELDS[name]:
        if kind in SCALARS:
            (out[field],) = struct.unpack_from(SCALARS[kind], frame, at)
            at += struct.calcsize(SCALARS[kind])
            continue
        (n,) = struct.unpack_from("<I", frame, at)
        at += 4
        at += -at % 8
        code = ARRAYS[kind]
        width = 1 if code is None else struct.calcsize(code)
        raw = frame[at:at + n * width]
        assert len(raw) == n * width, f"{name}.{field}"
        out[field] = raw if code is None else list(struct.unpack(f"<{n}{code}", raw))
        at += n * width
        at += -at % 8
    at += -at % 8
    assert at == len(frame), f"{name}: {len(frame) - at} bytes too many"
    return name, job, out


class Closed(Exception):
    pass


class Engine:
    def __init__(self, command, **popen):
        self.p = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, **popen)
        self.data = b""
        self.job = 0
        self.others = []  # (name, job, message) that were not asked for

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.p.kill()
        self.p.wait()
        self.p.stdin.close()
        self.p.stdout.close()

    def send(self, name, /, **values):
        if name == "RUN":
            values.setdefault("top_p", 1.0)  # off; 0 would be no token at all
        self.job += 1
        self.p.stdin.write(encode(name, self.job, **values))
        return self.job

    def next(self, timeout=60.0):
        """The next message, or Closed at the end of the stream; TimeoutError."""
        until = time.monotonic() + timeout
        while True:
            if len(self.data) >= HEADER:
                size = HEADER + struct.unpack_from("<I", self.data)[0]
                assert size <= HEADER + MAX
                if len(self.data) >= size:
                    frame, self.data = self.data[:size], self.data[size:]
                    return decode(frame)
            left = until - time.monotonic()
            if left <= 0 or not select.select([self.p.stdout], [], [], left)[0]:
                raise TimeoutError("the engine says nothing")
            got = os.read(self.p.stdout.fileno(), 1 << 16)
            if not got:
                raise Closed()
            self.data += got

    def until(self, *names, job=None, timeout=60.0):
        """Messages up to the first of these names (for this job), which is the last of the list."""
        seen = []
        while True:
            m = self.next(timeout)
            seen.append(m)
            if m[0] in names and (job is None or m[1] == job):
                return seen

    def hello(self):
        job = self.send("HELLO", version=VERSION, client="test")
        return self.until("WELCOME", "FAILED", job=job)[-1][2]

    def ask(self, name, /, timeout=60.0, **values):
        """Sends a job and returns (name, message) of what ends it."""
        job = self.send(name, **values)
        end = {"LOAD": "LOADED", "TOKENIZE": "TOKENS", "RUN": "DONE", "SELECT_MAP": "MAP"}[name]
        seen = self.until(end, "FAILED", job=job, timeout=timeout)
        self.seen = seen
        return seen[-1][0], seen[-1][2]
