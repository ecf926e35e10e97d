#!/usr/bin/env python3
"""All JSON files of bench_gpu.sh's OUT folder as one, OUT/bench.json, and as tables beside the goals, OUT/bench.md.

    {"device": ..., "files": {"8b-q4_0": {...}, ...}, "goals": [{"goal": "P5", "what": ..., "value": 1.3, "wanted": ">= 1", "met": true}, ...]}

Goals that need what was not measured are left out, and a value not measured is a dash: nothing is taken from elsewhere but the
figures of llama.cpp on an H100 80GB HBM3 (commit 0c1e57098, 2026-10-01, -ngl 99 -fa 1), named where they are used.
"""
import json
import os
import sys

LLAMA_CPP = {"small-steps": {0: 939, 4096: 835}, "8b-q4_0": {0: 327, 4096: 294}, "8b-q4_0-long": {16384: 247, 32768: 195},
             "8b-bf16": {0: 166, 16384: 141}, "7b-q4_0": {0: 339, 16384: 175}}  # decode tokens/s, batch 1, dense
LLAMA_CPP_PROMPT = 11300  # 8B Q4_0, 4096 tokens


def load(folder):
    files = {}
    for name in sorted(os.listdir(folder)):
        if name.endswith(".json") and name != "bench.json":
            try:
                with open(os.path.join(folder, name)) as f:
                    files[name[:-5]] = json.load(f)
            except ValueError as e:
                print("bench_table: %s: %s" % (name, e))
    return files


def rows(files, name, what=None):
    return [r for r in files.get(name, {}).get("rows", []) if (what is None or r.get("what") == what) and "error" not in r and "absent" not in r]


def pick(rs, **want):
    for r in rs:
        if all(r.get(k) == v for k, v in want.items()):
            return r
    return None


class Goals:
    def __init__(self):
        self.list = []

    def add(self, goal, what, value, wanted, sign=1):
        if value is None:
            return
        self.list.append({"goal": goal, "what": what, "value": value, "wanted": (">= %g" if sign > 0 else "<= %g") % wanted,
                          "met": bool(sign * value >= sign * wanted)})


def ratio(a, b, key):
    return a[key] / b[key] if a and b and a.get(key) and b.get(key) else None


def peers_of(files):
    """(shape, plan, batch, depth) -> {peer: us}"""
    out = {}
    for name in ("peers-torch", "peers-flashinfer"):
        for r in rows(files, name, "decode-attn"):
            if r.get("median_us"):
                out.setdefault((r["shape"], r["plan"], r["batch"], r["depth"]), {})[r["peer"]] = r["median_us"]
    return out


def attention_rows(files):
    """(shape, row) of ours, in the order of the files"""
    for name in files:
        if name.startswith("attn-"):
            shape = files[name].get("model", "").split(":")[1:2]
            for r in rows(files, name, "decode-attn"):
                yield shape[0] if shape else "", r


def wanted_ratio(kv_bytes):
    """P1: how much faster than the best peer"""
    return 1.05 if kv_bytes >= 250e6 else 1 if kv_bytes >= 70e6 else 1.3 if kv_bytes >= 16e6 else 1 if kv_bytes >= 10e6 else 2


def peers_table(files):
    """ours beside every peer, a row a problem"""
    best = peers_of(files)
    names = sorted({n for row in best.values() for n in row})
    if not names:
        return []
    out = ["", "## Decode attention of a layer beside its peers, microseconds", "",
           "| shape | plan | batch | depth | MB | ours | share | " + " | ".join(names) + " | best peer / ours | wanted |", "|" + "---|" * (9 + len(names))]
    for shape, r in attention_rows(files):
        row = best.get((shape, r["plan"], r["batch"], r["depth"]))
        if row:
            ratio = min(row.values()) / r["median_us"]
            wanted = wanted_ratio(r["kv_bytes"])
            out.append("| %s | %s | %d | %d | %.1f | %.1f | %.0f %% | %s | %s%.2f%s | %.2f |" % (
                shape, r["plan"], r["batch"], r["depth"], r["kv_bytes"] / 1e6, r["median_us"], 100 * r["share"],
                " | ".join("%.1f" % row[n] if n in row else "-" for n in names), "" if ratio >= wanted else "**", ratio,
                "" if ratio >= wanted else "**", wanted))
    return out


def goals_of(files):
    g = Goals()
    best = peers_of(files)
    for shape, r in attention_rows(files):
        row = best.get((shape, r["plan"], r["batch"], r["depth"]))
        if row:
            name = min(row, key=row.get)
            g.add("P1", "%s %s, %d x %d, %.1f MB: best peer's time (%s) / ours" % (shape, r["plan"], r["batch"], r["depth"], r["kv_bytes"] / 1e6, name),
                  row[name] / r["median_us"], wanted_ratio(r["kv_bytes"]))
    for shape in ("llama3-8b", "vicuna-7b"):
        for n in ("1", "8", "32"):
            rs = rows(files, "attn-%s-%s" % (shape, n), "decode-attn")
            for r in rs:
                if r["kv_bytes"] >= 250e6:
                    g.add("P1", "%s %s, %d x %d: share of the read ceiling" % (shape, r["plan"], r["batch"], r["depth"]), r["share"], 0.95)
                dense = pick(rs, plan="full", batch=r["batch"], depth=r["depth"])
                if dense and r is not dense and r["kv_bytes"] >= 64e6:
                    g.add("P2", "%s %d x %d: time(plan) / time(dense) - kept" % (shape, r["batch"], r["depth"]),
                          r["median_us"] / dense["median_us"] - r["kv_bytes"] / dense["kv_bytes"], 0.04, -1)
    for name, wanted in (("small-steps", 2.5), ("8b-q4_0", 1.7), ("8b-bf16", 1.12)):
        r = pick(rows(files, name, "step"), plan="full", batch=1, depth=0)
        g.add("P3", "%s: step / llama.cpp's %d tok/s" % (name, LLAMA_CPP[name][0]), r and r["tok_s"] / LLAMA_CPP[name][0], wanted)
    for name, depth, wanted in (("8b-q4_0-long", 32768, 2.2), ("7b-q4_0", 16384, 2.5)):
        rs = rows(files, name, "step")
        r = pick(rs, plan="groups:0.8,0.2", batch=1, depth=depth)
        g.add("P3", "%s at %d under density .5: step / llama.cpp's dense %d tok/s" % (name, depth, LLAMA_CPP[name][depth]),
              r and r["tok_s"] / LLAMA_CPP[name][depth], wanted)
    replay = rows(files, "replay", "replay")
    for batch, wanted in ((50, 1970), (25, 985), (12, 490)):
        r = pick(replay, plan="groups:0.8,0.2", batch=batch)
        g.add("P4", "7B F16, paper's table, batch %d: tok/s" % batch, r and r["tok_s"], wanted)
        dense = r and [d for d in replay if d["plan"] == "full" and abs(d["depth"] - r["depth"]) < 2]
        g.add("P4", "the same / our dense at its largest batch", r["tok_s"] / dense[0]["tok_s"] if r and dense else None, 1.7)
    r = pick(rows(files, "8b-q4_0", "ttft"), plan="full", depth=4096)
    g.add("P5", "8B Q4_0, 4096 tokens: prompt tok/s / llama.cpp's %d" % LLAMA_CPP_PROMPT, r and r["tok_s"] / LLAMA_CPP_PROMPT, 2.5)
    g.add("P5", "the same: share of a large product's rate", r and r.get("matrix_share"), 0.65)
    for name in ("small-rest", "8b-q4_0"):
        for r in rows(files, name, "memory"):
            where = "%s %s, %d tokens" % (name, r["plan"], r["depth"])
            if r["growth_end_bytes"] is not None:
                g.add("P6", where + ": (growth at the end - 2 MiB) / formula", (r["growth_end_bytes"] - (2 << 20)) / r["formula_end_bytes"], 1.02, -1)
                g.add("P6", where + ": growth after closing, bytes", r["growth_closed_bytes"], 0, -1)
            g.add("P6", where + ": pages held - formula at most, bytes", r["most_over_bytes"], 0, -1)
    for temp in ("0", "0.8"):
        t = files.get("trace-" + temp)
        if t:
            g.add("P7", "temp %s: graph launches a step" % temp, t["graph_launches"] / t["steps"], 1, -1)
            for key, most in (("kernel_launches", 0), ("uploads", 1 / 32), ("downloads", 0), ("synchronisations", 0)):
                g.add("P7", "temp %s: %s a step" % (temp, key.replace("_", " ")), t[key] / t["steps"], most, -1)
    for name in ("small-rest", "8b-q4_0"):
        for on_name, off_name, wanted in (("probe on", "probe off", 0.02), ("ttft sampled", "ttft", 0.01), ("ttft exact", "ttft", 0.08)):
            for on in rows(files, name, on_name):
                off = pick(rows(files, name, off_name), plan=on["plan"], depth=on["depth"])
                x = ratio(on, off, "median_us")
                g.add("P8", "%s %s, %d tokens: %s - 1" % (name, on["plan"], on["depth"], "step with statistics" if on_name == "probe on" else on_name.replace("ttft", "prompt watched")),
                      x and x - 1, wanted, -1)
    for name, what, wanted in (("small-rest", "SmolLM2", 60), ("load-small", "SmolLM2", 60), ("load-8b", "4.2 GB", 500)):
        r = pick(rows(files, name, "load"))
        g.add("P11", "%s from a warm file, ms" % what, r and r["median_us"] / 1e3, wanted, -1)
    return g.list


def number(x):
    return "-" if x is None else "%.4g" % x


def markdown(files, goals):
    device = next((f["device"] for f in files.values() if f.get("device")), "-")
    out = ["# Measured on %s" % device, "", "Ceilings are of each command's own run; times are medians.", "", "## Goals", "",
           "| goal | what | measured | wanted | met |", "|---|---|---|---|---|"]
    for x in goals:
        out.append("| %s | %s | %s | %s | %s |" % (x["goal"], x["what"], number(x["value"]), x["wanted"], "yes" if x["met"] else "**no**"))
    out += peers_table(files)
    for name, f in files.items():
        rs = [r for r in f.get("rows", [])]
        if not rs or name in ("peers-torch", "peers-flashinfer"):
            continue
        ceiling = f.get("ceiling")
        best = ceiling.get("best") if isinstance(ceiling, dict) else ceiling
        out += ["", "## %s" % name, "", "%s; ceiling %s GB/s" % (f.get("model", f.get("peer", "")), number(best and best / 1e9)), "",
                "| what | plan | batch | depth | kept | MB read | us | share | tok/s | TFLOP/s | of a product |", "|" + "---|" * 11]
        for r in rs:
            if r.get("what") == "memory":
                out.append("| memory | %s | 1 | %s | " % (r["plan"], r["depth"]) + ", ".join(
                    "%s %s MB" % (k[:-6].replace("_", " "), number(r[k] / 1e6 if r[k] is not None else None)) for k in r if k.endswith("_bytes")) +
                    " | | | | | | |")
                continue
            if "error" in r or "absent" in r:
                out.append("| %s | %s | %s | %s | %s | | | | | | |" % (r.get("peer", r["what"]), r.get("plan", "-"), r.get("batch", "-"), r.get("depth", "-"),
                                                                     r.get("error") or "absent: " + r["absent"]))
                continue
            read = (r.get("weight_bytes") or 0) + (r.get("kv_bytes") or 0)
            flop = r.get("flop_s")
            out.append("| %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s |" % (
                r.get("peer", r["what"]), r.get("plan", "-"), r.get("batch", "-"), r.get("depth", "-"), number(r.get("kept")), number(read / 1e6 if read else None),
                number(r.get("median_us")), number(r.get("share")), number(r.get("tok_s")), number(flop / 1e12 if flop else None), number(r.get("matrix_share"))))
    return "\n".join(out) + "\n"


def main():
    if len(sys.argv) != 2 or not os.path.isdir(sys.argv[1]):
        sys.exit("usage: bench_table.py OUT: the folder of bench_gpu.sh")
    folder = sys.argv[1]
    files = load(folder)
    goals = goals_of(files)
    with open(os.path.join(folder, "bench.json"), "w") as f:
        json.dump({"device": next((x["device"] for x in files.values() if x.get("device")), None), "files": files, "goals": goals}, f, indent=1)
        f.write("\n")
    with open(os.path.join(folder, "bench.md"), "w") as f:
        f.write(markdown(files, goals))
    met = sum(x["met"] for x in goals)
    print("bench_table: %d files, %d of %d goals met: %s" % (len(files), met, len(goals), os.path.join(folder, "bench.md")))


if __name__ == "__main__":
    main()
