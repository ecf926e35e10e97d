#!/usr/bin/env python3
"""The table of the proof: proof_table.py OUT... [--data FILE.jsonl] [--md FILE.md] [--from FILE.jsonl ...]

Reads what proof.sh and proof_rounds.sh left in their folders (finished evaluations and, where a run was cut off, their .part), or the compact
records of earlier runs (--from), and writes

  --data   one record a line: an evaluation of one plan at one length, a validation, a search, a refinement, a calibration
  --md     tables by model with 95 % intervals, and the goals with met or missed, by the figures alone

Retrieval is compared case by case: every plan of a model answers the same questions, of two numbers of them the first ones. Of n and k n
windows of text every k-th is the same. Ratios are of measured shares; the interval of a
share is Wilson's, that of a difference of two plans on the same cases comes from the cases they differ in. Standard library only."""
import argparse
import json
import math
import os
import re
import sys

LIMIT = 64 << 20  # bytes of a file read


def read_json(path):
    if os.path.getsize(path) > LIMIT:
        raise ValueError(f"{path}: larger than {LIMIT} bytes")
    with open(path, encoding="utf-8") as f:
        return json.load(f)


def wilson(right, n, z=1.959963984540054):
    if n == 0:
        return 0.0, 1.0
    p, zz = right / n, z * z
    mid, half = p + zz / (2 * n), z * math.sqrt(p * (1 - p) / n + zz / (4 * n * n))
    return max(0.0, (mid - half) / (1 + zz / n)), min(1.0, (mid + half) / (1 + zz / n))


def plan_name(spec):
    """full, uniform:0.5, or the variant's folder of a plan's path"""
    return os.path.basename(os.path.dirname(spec)) if spec.endswith(".json") else spec


# --- from the folders -------------------------------------------------------------------------------------------------------------

def of_length(base, plan, length, items, whole, settings):
    r = dict(base, kind=base.get("kind", "eval"), plan=plan, length=length, n=len(items), whole=whole)
    r["kv_density"] = sum(x["kv_density"] for x in items) / len(items)
    if settings.get("span_mean") is not None:
        r["span_mean"] = settings["span_mean"]
        r["kv_density_plan"] = settings["kv_density_plan"]
    if "right" in items[0]:
        r["right"] = "".join("1" if x["right"] else "0" for x in items)
        r["depth"] = [round(x.get("position", -1), 3) for x in items]
    else:
        r["loss"] = [round(x["loss"], 6) for x in items]
        r["judged"] = [x["n_judged"] for x in items]
    r["prefill_s"] = round(sum(x["prefill_s"] for x in items), 3)
    r["tokens"] = sum(x["prompt_tokens"] for x in items)
    return r


def from_eval(folder, name, base):
    path = os.path.join(folder, "eval", name)
    with open(path + ".args", encoding="utf-8") as f:
        args = f.read().splitlines()
    specs, base = args[3:], dict(base, task=args[0])
    if name.startswith("choose-"):  # other questions and texts than those of the tables
        base["kind"] = "choose"
    out = []
    if os.path.exists(path + ".json"):
        d = read_json(path + ".json")
        base = dict(base, model=d["model"], fingerprint=d["fingerprint"], device=d["device"], form=d["form"], seed=d["seed"])
        for p in d.get("plans", [d]):
            for x in p["lengths"]:
                out.append(of_length(base, plan_name(p["plan"]), x["length"], x["items"], True, x))
    elif os.path.exists(path + ".json.part"):
        groups = {}
        with open(path + ".json.part", encoding="utf-8") as f:
            for line in f:
                try:
                    x = json.loads(line)
                except ValueError:
                    continue  # cut short by a crash
                if "case" in x:
                    groups.setdefault((x["plan"], x["length"]), {})[x["case"]] = x
        for (p, length), cases in sorted(groups.items()):
            if sorted(cases) == list(range(len(cases))):  # the first ones, without a hole
                out.append(of_length(base, plan_name(specs[p]), length, [cases[i] for i in range(len(cases))], False, {}))
    return out


ROUND = re.compile(r"round (\d+\w): density ([\d.]+), predicted ([-+\d.]+|-), loss ([-\d.]+), ([-+\d.]+)"
                   r"(?: \(([-+\d.]+) an answer, ([-+\d.]+) a token of text, weighed ([\d.e+-]+)\))?")


def refinement(folder, name, base):
    """the rounds that a refinement told of, whole or cut off"""
    m = re.match(r"refine-(\w+-\w+-[\d.]+)\.err$", name)
    if not m:
        return []
    rounds = []
    with open(os.path.join(folder, name), encoding="utf-8", errors="replace") as f:
        for line in f:
            c = ROUND.search(line)
            if c:
                r = {"round": c[1], "predicted": None if c[3] == "-" else float(c[3]), "change": float(c[5])}
                if c[6]:
                    r.update(answers=float(c[6]), texts=float(c[7]), weight=float(c[8]))
                rounds.append(r)
    return [dict(base, kind="refine", variant=f"both-{m[1]}", rounds=rounds)] if rounds else []


def from_folder(folder):
    with open(os.path.join(folder, "settings"), encoding="utf-8") as f:
        model, budget, task = f.read().split()
    base = {"file": model, "budget": budget, "main_task": task}
    out = []
    evals = sorted(x[:-5] for x in os.listdir(os.path.join(folder, "eval")) if x.endswith(".args"))
    for name in evals:
        out += from_eval(folder, name, base)
    for variant in sorted(os.listdir(os.path.join(folder, "plans"))):
        path = os.path.join(folder, "plans", variant)
        if os.path.exists(path + "/pareto.json"):
            for s in read_json(path + "/pareto.json")["searches"]:
                out.append(dict(base, kind="search", variant=variant, rules=s["settings"]["rules"],
                                alpha_step=s["settings"]["alpha_step"], solves=s["solves"], gap_median=s["gap_median"],
                                gap_worst=s["gap_worst"], cpu_seconds=round(s["cpu_seconds"], 3)))
        if os.path.exists(path + "/validate.json"):
            v = read_json(path + "/validate.json")
            out.append(dict(base, kind="validate", variant=variant, length=v["length"], items=v["items"], best=os.path.basename(v["best"]),
                            plans=[{k: (os.path.basename(p[k]) if k == "plan" else round(p[k], 6)) for k in
                                    ("plan", "loss", "loss_over_full", "standard_error", "kv_density")
                                    if p.get(k) is not None} for p in v["plans"]]))
    for name in sorted(os.listdir(os.path.join(folder, "log"))):
        m = re.match(r"calibrate-(\w+)\.err$", name)
        if m:
            with open(os.path.join(folder, "log", name), encoding="utf-8", errors="replace") as f:
                for line in f:
                    c = re.search(r"(\d+) tokens: (\d+) items, .* of (\d+) with a known answer (\d+) right", line)
                    if c:
                        out.append(dict(base, kind="calibrate", data=m[1], length=int(c[1]), items=int(c[2]), asked=int(c[3]),
                                        right=int(c[4])))
        out += refinement(os.path.join(folder, "log"), name, base)
    times = os.path.join(folder, "times.jsonl")
    if os.path.exists(times):
        with open(times, encoding="utf-8") as f:
            out += [dict(base, kind="time", **json.loads(x)) for x in f]
    return out


# --- the tables ---------------------------------------------------------------------------------------------------------------------

class Model:
    def __init__(self, file, records):
        self.file, self.records = file, records
        self.task = records[0]["main_task"]
        self.evals = {}
        for r in records:  # of two runs over the same cases the longer one
            if r["kind"] == "eval":
                key = r["task"], r["plan"], r["length"]
                if key not in self.evals or r["n"] > self.evals[key]["n"]:
                    self.evals[key] = r
        self.name = next((r["model"] for r in records if r["kind"] == "eval" and "model" in r), file)
        self.device = next((r["device"] for r in records if r["kind"] == "eval" and "device" in r), "-")

        self.whole = {}  # of full attention, by number of cases
        for r in records:
            if r["kind"] == "eval" and r["plan"] == "full" and r.get("whole", True):
                self.whole[r["task"], r["length"], r["n"]] = r

    def get(self, task, plan, length):
        return self.evals.get((task, plan, length))

    def full(self, r):
        """full attention over the same windows as r, and how many of its windows are one of r's"""
        numbers = sorted(n for t, length, n in self.whole if (t, length) == (r["task"], r["length"]))
        more = [n for n in numbers if n >= r["n"]]
        if not more:
            return self.get(r["task"], "full", r["length"]), 1
        n = more[0]
        return self.whole[r["task"], r["length"], n], n // r["n"] if r.get("whole", True) and n % r["n"] == 0 else 1

    def lengths(self, task):
        return sorted({k[2] for k in self.evals if k[0] == task})

    def plans(self, task):
        def order(p):
            m = re.match(r"uniform:([\d.]+)$", p)
            if p == "full":
                return 0, 0, 0, ""
            density = float(m[1]) if m else float(p.rsplit("-", 1)[1])
            return 1, -density, 0 if m else 1 if p.startswith(f"{self.task}-joint-group") else 2, p
        return sorted({k[1] for k in self.evals if k[0] == task}, key=order)


def share(r):
    return r["right"].count("1") / r["n"]


def cell(r, most):
    low, high = wilson(r["right"].count("1"), r["n"])
    return f"{100 * share(r):.0f} ({100 * low:.0f}-{100 * high:.0f})" + ("" if r["n"] >= most else f" n={r['n']}")


def loss_of(r):
    return sum(a * b for a, b in zip(r["loss"], r["judged"])) / sum(r["judged"])


def right(r, n):
    return r["right"][:n].count("1")


def loss_change(r, m):
    """mean difference to full attention in nats a token, and its standard error over windows"""
    full, step = m.full(r)
    d = [a - b for a, b in zip(r["loss"], full["loss"][::step])]
    n = len(d)
    mean = sum(d) / n
    return mean, math.sqrt(sum((x - mean) ** 2 for x in d) / (n - 1) / n) if n > 1 else math.nan


def effective(m, task, plan):
    """(longest length with at least 90 % right, its record) over lengths that follow each other without a miss; not those at which the
    shortest span there is, 128 tokens, is all that the density allows"""
    best, least = (0, None), re.search(r"[-:]([\d.]+)$", plan)
    for n in m.lengths(task):
        r = m.get(task, plan, n)
        if r is None or least and float(least[1]) * n <= 128:
            continue
        if 10 * r["right"].count("1") < 9 * r["n"]:
            break
        best = (n, r)
    return best


def density(r):
    return r.get("kv_density_plan", r["kv_density"])


def between(m, task):
    """lengths asked for the effective context alone: no power of two, where there are some"""
    lengths = m.lengths(task)
    powers = [n for n in lengths if n & (n - 1) == 0]
    return [n for n in lengths if n not in powers] if len(powers) > 2 else []


def retrieval_table(m, task, out):
    finer = between(m, task)
    lengths = [n for n in m.lengths(task) if n not in finer]
    if not lengths:
        return
    out.append(f"**{task}**: share right in %, 95 % interval; n = "
               f"{max(r['n'] for k, r in m.evals.items() if k[0] == task)} a length unless said; in brackets the KV density there\n")
    out.append("| plan | " + " | ".join(f"{n:,}" for n in lengths) + " | effective context | that / mean span |")
    out.append("|---|" + "---|" * (len(lengths) + 2))
    most = max(r["n"] for k, r in m.evals.items() if k[0] == task)
    for plan in m.plans(task):
        row = [f"`{plan}`"]
        for n in lengths:
            r = m.get(task, plan, n)
            row.append("-" if r is None else f"{cell(r, most)} [{100 * density(r):.1f}]")
        length, r = effective(m, task, plan)
        row.append(f"{length:,}" if length else "below " + f"{min(n for n in lengths if m.get(task, plan, n)):,}")
        row.append(f"{length / r['span_mean']:.1f}" if r and "span_mean" in r else "-")
        out.append("| " + " | ".join(row) + " |")
    out.append("")
    if finer:
        out.append("Between: " + "; ".join(f"`{plan}` " + ", ".join(f"{n:,}: {cell(m.get(task, plan, n), most)}" for n in finer if m.get(task, plan, n))
                                           for plan in m.plans(task) if any(m.get(task, plan, n) for n in finer)) + ".\n")


def ppl_table(m, out):
    lengths = [n for n in m.lengths("ppl") if m.get("ppl", "full", n)]
    if not lengths:
        return
    out.append("**Perplexity** on held-out texts: the change against full attention over the same windows, in %, with two standard errors\n")
    out.append("| plan | " + " | ".join(f"{n:,} tokens" for n in lengths) + " | KV density |")
    out.append("|---|" + "---|" * (len(lengths) + 1))
    for plan in m.plans("ppl"):
        row, last = [f"`{plan}`"], None
        for n in lengths:
            r = m.get("ppl", plan, n)
            if r is None:
                row.append("-")
                continue
            last = r
            if plan == "full":
                row.append(f"{math.exp(loss_of(r)):.3f} n={r['n']}")
            else:
                change, error = loss_change(r, m)
                row.append(f"{100 * math.expm1(change):+.2f} ± {200 * error:.2f} n={r['n']}")
        row.append(f"{density(last):.3f}" if last else "-")
        out.append("| " + " | ".join(row) + " |")
    out.append("")


def refine_table(m, out):
    rows = {r["variant"]: r["rounds"] for r in m.records if r["kind"] == "refine"}
    if not rows:
        return
    out.append("Rounds, on the items that judge: change of the loss against full attention, answers in nats each, text in nats a token\n")
    out.append("| plan | at once: answers, text | best round | answers, text | judged |")
    out.append("|---|---|---|---|---|")
    for variant, rounds in rows.items():
        best = min(rounds, key=lambda r: r["change"])
        def parts(r):
            return f"{r['answers']:+.3f}, {r['texts']:+.4f}" if "answers" in r else f"{r['change']:+.4f}"
        out.append(f"| `{variant}` | {parts(rounds[0])} | {best['round']} | {parts(best)} | {len(rounds)} plans |")
    out.append("")


def choose_table(m, out):
    """the choice among refined plans, counted again: right answers over all lengths, the change of perplexity on texts"""
    asked, texts = {}, {}
    for r in m.records:
        if r["kind"] == "choose" and r.get("whole", True):
            of = texts if r["task"] == "ppl" else asked
            of.setdefault(r["plan"], {})[r["length"]] = r
    plans = [p for p in asked if p in texts and "full" in texts]
    if not plans:
        return
    out.append("Chosen by other questions and texts (seed 7; less than 1 % of perplexity, then the most right answers):\n")
    out.append("| plan | right | of | perplexity, % |")
    out.append("|---|---|---|---|")
    for p in plans:
        d = [a - b for n, r in texts[p].items() for a, b in zip(r["loss"], texts["full"][n]["loss"])]
        mean = sum(d) / len(d)
        error = math.sqrt(sum((x - mean) ** 2 for x in d) / (len(d) - 1) / len(d)) if len(d) > 1 else math.nan
        out.append(f"| `{p}` | {sum(r['right'].count('1') for r in asked[p].values())} | {sum(r['n'] for r in asked[p].values())} | "
                   f"{100 * math.expm1(mean):+.2f} ± {200 * error:.2f} n={len(d)} |")
    out.append("")


def verdict(ok):
    return "met" if ok else "**missed**"


def goals(m, out):
    """of the plans that were asked at several lengths; of those of the proof's own kinds where there are any"""
    plans = [p for p in m.plans(m.task) if re.search("-[0-9.]+$", p) and sum(m.get(m.task, p, n) is not None for n in m.lengths(m.task)) > 1]
    named = [p for p in plans if re.match("both-(?!margin)", p)]
    lines = [(p, goal_lines(m, p)) for p in named or plans]
    out.append("Goals:\n")
    out += [f"- `{p}`: " + "; ".join(x) for p, x in lines if x]
    out.append("")


def goal_lines(m, plan):
    lines, half = [], plan.endswith("-0.5")
    both = [n for n in m.lengths(m.task) if m.get(m.task, plan, n) and m.get(m.task, "full", n)]
    able = [n for n in both if share(m.get(m.task, "full", n)) > .1]
    if able and half:
        of = {n: min(m.get(m.task, plan, n)["n"], m.get(m.task, "full", n)["n"]) for n in able}
        mine = {n: right(m.get(m.task, plan, n), of[n]) for n in able}
        full = {n: right(m.get(m.task, "full", n), of[n]) for n in able}
        worst = min(able, key=lambda n: mine[n] / max(full[n], 1))
        kept = sum(mine.values()) / sum(full.values())
        lines.append(f"keeps {100 * kept:.1f} % of what full attention gets right over {len(able)} lengths "
                     f"(least {100 * mine[worst] / max(full[worst], 1):.0f} % at {worst:,}; goal 95 %): {verdict(kept >= .95)}")
        for longest in [n for n in reversed(able) if m.get(m.task, "uniform:0.5", n)][:1]:
            u, r = m.get(m.task, "uniform:0.5", longest), m.get(m.task, plan, longest)
            ratio = share(r) / share(u) if share(u) else math.inf
            lines.append(f"at {longest:,} {'all' if ratio == math.inf else f'{ratio:.2f}'} times uniform's {100 * share(u):.0f} % "
                         f"(goal 1.5): {verdict(ratio >= 1.5)}")
    ppl = [n for n in m.lengths("ppl") if m.get("ppl", plan, n) and m.get("ppl", "full", n)]
    if ppl and half:
        change = max(math.expm1(loss_change(m.get("ppl", plan, n), m)[0]) for n in ppl)
        lines.append(f"perplexity {100 * change:+.2f} % (goal within 1 %): {verdict(change <= .01)}")
    length, r = effective(m, m.task, plan)
    if r and "span_mean" in r:
        full_length = effective(m, m.task, "full")[0]
        x = length / r["span_mean"]
        lines.append(f"effective context {length:,} (full attention {full_length:,}), {x:.2f} times the mean span"
                     + (" (goal 3, which half of every length cannot reach)" if half else f" (goal 3): {verdict(x >= 3)}"))
    return lines


def pipeline(m, out):
    rows = [r for r in m.records if r["kind"] == "calibrate"]
    if rows:
        out.append("Calibration items asked and right: " + "; ".join(
            f"{r['data']} {r['length']:,}: {r['right']} of {r['asked']}" for r in rows) + ".\n")
    rows = [r for r in m.records if r["kind"] == "validate"]
    if rows:
        out.append("| variant | validated at | full | uniform | front's best | of plans |")
        out.append("|---|---|---|---|---|---|")
        for r in rows:
            by = {p["plan"]: p for p in r["plans"]}
            u = next((p for k, p in by.items() if k.startswith("uniform")), None)
            out.append(f"| `{r['variant']}` | {r['length']:,}, {r['items']} items | {by['full']['loss']:.4f} | "
                       f"{u['loss'] if u else math.nan:.4f} | {by[r['best']]['loss']:.4f} | {len(r['plans']) - 2} |")
        out.append("")
    rows = [r for r in m.records if r["kind"] == "time"]
    if rows:
        took = {}
        for r in rows:
            name = r["step"].split("-")[0]
            took[name] = took.get(name, 0) + r["seconds"]
        out.append("Time, s, in all: " + "; ".join(f"{k} {x:.1f}" for k, x in took.items()) + ".\n")


def markdown(records):
    out = ["# Do searched plans keep what uniform windows lose?", "",
           "Generated by `scripts/proof_table.py` from `docs/measurements/proof-*.jsonl`; the runs are `scripts/proof_rounds.sh MODEL OUT` and `scripts/proof.sh "
           "MODEL OUT`, which say what each stage does and how plans are named: calibration-measure-per-density. Calibration, held-out and "
           "evaluation documents differ; all plans answer the same questions.", ""]
    models = {}
    for r in records:
        models.setdefault(r["file"], []).append(r)
    for file, rs in models.items():
        m = Model(file, rs)
        out += [f"## {m.name}", "", f"`{file}`, {m.device}, budgets: {', '.join(dict.fromkeys(r['budget'] for r in rs))}.", ""]
        for task in dict.fromkeys([m.task, "retrieval", "passkey", "needle", "facts"]):
            retrieval_table(m, task, out)
        ppl_table(m, out)
        refine_table(m, out)
        choose_table(m, out)
        goals(m, out)
        pipeline(m, out)
    return "\n".join(out).rstrip() + "\n"


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("folders", nargs="*")
    a.add_argument("--from", dest="data_in", nargs="+", default=[])
    a.add_argument("--data")
    a.add_argument("--md")
    o = a.parse_args()
    records = []
    for path in o.data_in:
        with open(path, encoding="utf-8") as f:
            records += [json.loads(x) for x in f if x.strip()]
    for folder in o.folders:
        records += from_folder(folder)
    if not records:
        sys.exit("proof_table.py: nothing was measured yet")
    if o.data:
        with open(o.data, "w", encoding="utf-8") as f:
            f.writelines(json.dumps(r) + "\n" for r in records)
    text = markdown(records)
    if o.md:
        begin, keep = "<!-- reading -->", ""
        if os.path.exists(o.md):  # what a person wrote below the mark stays
            with open(o.md, encoding="utf-8") as f:
                old = f.read()
            keep = old[old.index(begin):] if begin in old else ""
        with open(o.md, "w", encoding="utf-8") as f:
            f.write(text + ("\n" + keep if keep else ""))
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
