"""Seeds of fuzz_wire: one frame of each message with something in every field, a few in a row, and some that are not valid."""
import os
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from wire_client import ARRAYS, FIELDS, SCALARS, encode  # noqa: E402

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "corpus", "wire")


def values(name, n):
    out = {}
    for i, (kind, field) in enumerate(FIELDS[name]):
        if kind in SCALARS:
            out[field] = i + 1
        elif kind in ("str", "u8s"):
            out[field] = bytes(range(32, 32 + n))
        else:
            out[field] = [i + j for j in range(n)]
        assert kind in SCALARS or kind in ARRAYS
    return out


def main():
    os.makedirs(OUT, exist_ok=True)
    stream = b""
    for job, name in enumerate(FIELDS):
        frame = encode(name, job, **values(name, 3))
        stream += frame
        open(os.path.join(OUT, name.lower()), "wb").write(frame)
    open(os.path.join(OUT, "stream"), "wb").write(stream)
    open(os.path.join(OUT, "empty_fields"), "wb").write(b"".join(encode(name) for name in FIELDS))
    bad = bytearray(encode("NOTE", 1, text=b"abcdefgh"))
    struct.pack_into("<I", bad, 16, 0xfffffff8)
    open(os.path.join(OUT, "bad_count"), "wb").write(bad)
    open(os.path.join(OUT, "bad_text"), "wb").write(b"Welcome to gpu-box, last login Tuesday\n")


main()
