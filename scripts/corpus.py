#!/usr/bin/env python3
"""Assemble the default corpus: long freely licensed English texts from Debian packages, as plain text.

Calibration and perplexity need long documents. These come with Debian, are free to use and change, and apt checks what it
fetches against the archive's signatures. Packages are taken apart as data (dpkg-deb -x into a temporary folder), never installed.

    package -> its files (.txt.gz, .html) -> plain text -> OUT/calibration/NAME.txt   for calibrate and profile
                                                           OUT/heldout/NAME.txt       for validate and perplexity: other books
    OUT/manifest.json   of each text: package, version, licence, files, bytes, SHA-256
    OUT/licences/       the packages' copyright files

OUT appears by rename, complete or not at all; a corpus that is there is kept unless --force. Standard library only, Python 3.9 or newer.
The folder is the last line on stdout, all else is on stderr. Exit codes: 0 it is there, 1 the work failed, 2 wrong usage, 130 interrupted.
"""
import argparse
import gzip
import hashlib
import html.parser
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# package, part, licence in one line (the copyright file is kept beside), patterns of its files, pattern of files left out
SOURCES = [
    ("debian-handbook", "calibration", "GPL-2.0+ or CC-BY-SA-3.0", ["usr/share/doc/debian-handbook/html/en-US/*.html"], r"/(ix01|index|apas|backcover)\b"),
    ("debian-policy", "calibration", "GPL-2+", ["usr/share/doc/debian-policy/policy.txt.gz"], None),
    ("maint-guide", "calibration", "GPL-2.0+", ["usr/share/doc/maint-guide/maint-guide.en.txt.gz"], None),
    ("vim-doc", "calibration", "Vim, OPL-1+ (user manual)", ["usr/share/doc/vim/html/usr_*.html"], r"/usr_toc"),
    ("jargon-text", "heldout", "public domain", ["usr/share/doc/jargon-text/jargon.txt.gz"], None),
    ("developers-reference", "heldout", "GPL-2", ["usr/share/developers-reference/developers-reference.txt.gz"], None),
    ("debian-faq", "heldout", "free with its notice (see copyright)", ["usr/share/doc/debian/FAQ/debian-faq.en.txt.gz"], None),
]
SKIP = {"script", "style", "head", "nav"}
BLOCK = {"p", "div", "br", "h1", "h2", "h3", "h4", "h5", "h6", "li", "dt", "dd", "tr", "pre", "table", "ul", "ol", "dl", "title", "section"}


class Text(html.parser.HTMLParser):
    """The words of an HTML page: blocks become lines, spaces are joined but in <pre>."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.out, self.skip, self.pre = [], 0, 0

    def handle_starttag(self, tag, attrs):
        self.skip += tag in SKIP
        self.pre += tag == "pre"
        if tag in BLOCK:
            self.out.append("\n")

    def handle_endtag(self, tag):
        self.skip = max(0, self.skip - (tag in SKIP))
        self.pre = max(0, self.pre - (tag == "pre"))
        if tag in BLOCK:
            self.out.append("\n")

    def handle_data(self, data):
        if not self.skip:
            self.out.append(data if self.pre else re.sub(r"\s+", " ", data))


def say(text):
    print("corpus: " + text, file=sys.stderr)


def plain(path):
    """A file as text."""
    data = gzip.open(path).read() if path.suffix == ".gz" else path.read_bytes()
    text = data.decode("utf-8", "replace")
    if ".html" in path.suffixes:
        parser = Text()
        parser.feed(text)
        parser.close()
        text = "".join(parser.out)
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "", text.replace("\r\n", "\n").replace("\u00a0", " "))
    text = re.sub(r"[ \t]+\n", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def natural(path):
    return [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", path.name)]


def fetch(package, temp):
    """Downloads and unpacks a package; gives its folder and version."""
    folder = temp / package
    folder.mkdir()
    got = subprocess.run(["apt-get", "download", "-q", package], cwd=folder, capture_output=True, text=True)
    debs = list(folder.glob("*.deb"))
    if got.returncode != 0 or len(debs) != 1:
        raise RuntimeError("%s: apt-get download failed: %s" % (package, got.stderr.strip().split("\n")[-1] or "no package came"))
    version = subprocess.run(["dpkg-deb", "-f", debs[0], "Version"], capture_output=True, text=True, check=True).stdout.strip()
    subprocess.run(["dpkg-deb", "-x", debs[0], folder / "x"], check=True)
    return folder / "x", version


def add(source, temp, out):
    package, part, licence, patterns, leave = source
    root, version = fetch(package, temp)
    files = sorted((p for pattern in patterns for p in root.glob(pattern)), key=natural)
    files = [p for p in files if p.is_file() and not p.is_symlink() and not (leave and re.search(leave, str(p)))]
    if not files:
        raise RuntimeError("%s %s: none of %s is in the package" % (package, version, ", ".join(patterns)))
    text = "\n".join(plain(p) for p in files)
    path = out / part / (package + ".txt")
    path.write_text(text, encoding="utf-8")
    shutil.copyfile(root / "usr/share/doc" / package / "copyright", out / "licences" / (package + ".copyright"))
    data = path.read_bytes()
    say("%s %s (%s): %d files, %d bytes of text, %s" % (package, version, licence, len(files), len(data), part))
    return {
        "file": "%s/%s" % (part, path.name), "package": package, "version": version, "licence": licence,
        "licence_file": "licences/%s.copyright" % package, "from": [str(p.relative_to(root)) for p in files],
        "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(),
    }


def default_folder():
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(cache) / "moascope" / "corpus"


def build(out, names):
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".corpus.", dir=out.parent) as name:
        temp, made = Path(name), Path(name) / "corpus"
        for folder in ("calibration", "heldout", "licences"):
            (made / folder).mkdir(parents=True)
        (temp / "packages").mkdir()
        os.chmod(temp, 0o755)  # apt's fetching user may write nowhere else
        texts = [add(s, temp / "packages", made) for s in SOURCES if not names or s[0] in names]
        (made / "manifest.json").write_text(json.dumps({"made_by": "scripts/corpus.py", "texts": texts}, indent=1) + "\n")
        if out.exists():
            out.rename(temp / "old")
        made.rename(out)


def main():
    parser = argparse.ArgumentParser(description="Assemble the default corpus from Debian packages.")
    parser.add_argument("--out", type=Path, default=default_folder(), help="folder to make [%(default)s]")
    parser.add_argument("--only", nargs="+", metavar="PACKAGE", choices=[s[0] for s in SOURCES], help="these packages alone")
    parser.add_argument("--force", action="store_true", help="replace a corpus that is there")
    parser.add_argument("--list", action="store_true", help="name sources and licences, fetch nothing")
    args = parser.parse_args()
    if args.list:
        for package, part, licence, _, _ in SOURCES:
            print("%-22s %-12s %s" % (package, part, licence))
        return 0
    if args.out.exists() and not args.force:
        if not (args.out / "manifest.json").is_file():
            say("%s is there and is no corpus; remove it or name another folder with --out" % args.out)
            return 1
        say("%s is there already; --force makes it anew" % args.out)
    else:
        for tool in ("apt-get", "dpkg-deb"):
            if not shutil.which(tool):
                say("%s is not here: the texts come from Debian or Ubuntu packages. `moascope calibrate --synthetic` needs none" % tool)
                return 1
        try:
            build(args.out, args.only)
        except (RuntimeError, OSError, subprocess.CalledProcessError) as e:
            say(str(e))
            return 1
    print(args.out)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        say("interrupted; nothing was left behind")
        sys.exit(130)
