"""The engine process over the wire, with a tiny random model on the CPU: what it answers, and what it refuses.

    tests/serve.py BUILD
"""
import os
import signal
import struct
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from wire_client import VERSION, Closed, Engine, encode  # noqa: E402

BUILD = sys.argv[1]
DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data")
LLAMA = os.path.join(DATA, "tiny_llama.gguf")
COMMAND = [os.path.join(BUILD, "moascope"), "engine"]
TEXT = "the quick brown fox jumps over the lazy dog. " * 10
N_LAYER, N_HEAD = 2, 6


def loaded(e, **more):
    e.hello()
    name, m = e.ask("LOAD", **{"path": LLAMA, "device": "cpu", **more})
    assert name == "LOADED", m
    assert (m["n_layer"], m["n_head"], m["n_head_kv"], m["n_vocab"]) == (2, 6, 2, 276)
    return m


def texts(e):
    return b"".join(m["piece"] for name, _, m in e.seen if name == "TOKEN")


def of(e, name):
    return [m for n, _, m in e.seen if n == name]


def test_hello():
    with Engine(COMMAND) as e:
        start = time.monotonic()
        w = e.hello()
        took = time.monotonic() - start
        assert w["version"] == VERSION and b"cpu\t" in w["devices"], w
        assert took < 0.5, f"WELCOME after {took:.3f} s"
        print(f"  WELCOME after {1e3 * took:.0f} ms")
    with Engine(COMMAND) as e:
        job = e.send("HELLO", version=99, client="from the future")
        name, j, m = e.until("FAILED", "WELCOME", job=job)[-1]
        assert name == "FAILED" and b"version 99" in m["text"]
    with Engine(COMMAND) as e:
        assert e.ask("RUN", text="x")[0] == "FAILED"  # no HELLO yet


def test_run():
    with Engine(COMMAND) as e:
        loaded(e)
        name, done = e.ask("RUN", text=TEXT, n_gen=20, fresh=1, watch=3, stats_every=5, temp=0.0, ignore_end=1)
        assert name == "DONE", done
        tokens, stats, hists, pages = (of(e, x) for x in ("TOKEN", "STATS", "HIST", "PAGES"))
        started = of(e, "STARTED")[0]
        n_prompt = done["n_prompt"]
        assert len(tokens) == done["n_gen"] == 20 and [t["index"] for t in tokens] == list(range(20))
        assert started["n_new"] == n_prompt == len(started["ids"]) and started["pieces"] == TEXT.encode()
        assert started["n_reserved"] == n_prompt + 20 and len(started["spans"]) == N_LAYER * N_HEAD
        assert tokens[0]["pos"] == n_prompt and len(tokens[0]["top_ids"]) == len(tokens[0]["top_ends"]) >= 2
        assert all(t["logprob"] <= 0 and t["entropy"] >= 0 and t["kl"] != t["kl"] for t in tokens)
        # after the prefill, after tokens 5, 10, 15, and at the end
        assert len(stats) >= 3 and stats[0]["n_query"] in (n_prompt, n_prompt + 1) and stats[-1]["n_query"] == n_prompt + 20
        assert [h["layer"] for h in hists[-N_LAYER:]] == list(range(N_LAYER))
        for h in hists[-N_LAYER:]:
            assert abs(sum(h["hist"]) - N_HEAD * (n_prompt + 20)) < 0.1 and sum(h["queries"]) == n_prompt + 20
        for i in range(N_LAYER * N_HEAD):
            assert abs(stats[-1]["sink"][i] + stats[-1]["window"][i] - 1) < 1e-4  # dense: nothing is cut
        p = pages[-1]
        assert sum(p["held"]) * p["page_bytes"] == p["used_bytes"] == done["kv_bytes"] == p["formula_plan"]
        first = texts(e)
        # the same again gives the same; half the memory gives half the pages
        e.ask("RUN", text=TEXT, n_gen=20, fresh=1, temp=0.0, ignore_end=1)
        assert texts(e) == first and not of(e, "STATS") and not of(e, "HIST")
        name, half = e.ask("RUN", text=TEXT, n_gen=20, fresh=1, temp=0.0, ignore_end=1, alphas=[0.0] * 12, betas=[0.5] * 12)
        assert half["kv_bytes"] < 0.75 * done["kv_bytes"] and half["kv_dense"] == done["kv_dense"], (half, done)
        assert set(of(e, "STARTED")[0]["spans"]) == {256}, half


def test_maps():
    with Engine(COMMAND) as e:
        loaded(e)
        e.send("SELECT_MAP", layer=1, head=2, rows=8, cols=16, follow=1)  # nothing captured yet: waits
        name, done = e.ask("RUN", text=TEXT, n_gen=8, fresh=1, watch=2, stats_every=4, temp=0.0, ignore_end=1)
        maps = of(e, "MAP")
        assert len(maps) >= 2, "follow"
        n = done["n_prompt"] + done["n_gen"]
        assert abs(sum(maps[-1]["mass"]) - n) < 1e-2 and maps[-1]["q1"] == n and (maps[-1]["rows"], maps[-1]["cols"]) == (8, 16)
        name, m = e.ask("SELECT_MAP", layer=0, head=5, span=128, rows=1000, cols=1000)
        assert name == "MAP" and m["span"] == 128 and m["rows"] == m["cols"] == n  # no more cells than tokens
        rows = [sum(m["mass"][r * n:(r + 1) * n]) for r in range(n)]
        assert all(abs(r - 1) < 1e-4 for r in rows)
        for i in (0, 63, 130, n - 1):
            for j in range(n):
                seen = j <= i and (j < 64 or i - j < 64)
                assert seen == (m["mass"][i * n + j] > 0), (i, j)
        for bad in (dict(layer=2), dict(layer=-1), dict(head=6), dict(q0=5, q1=5), dict(q0=-1), dict(k0=n), dict(rows=0), dict(cols=-3),
                    dict(span=-1), dict(measure_span=1 << 30)):
            name, m = e.ask("SELECT_MAP", **{"rows": 4, "cols": 4, **bad})
            assert name == "FAILED" and m["status"] == 3, (bad, m)


def test_chat():
    with Engine(COMMAND) as e:
        loaded(e)
        e.ask("RUN", text="One?", chat=1, fresh=1, n_gen=5, temp=0.0)
        first, answer = of(e, "STARTED")[0]["pieces"], texts(e)
        e.ask("RUN", text="Two?", chat=1, fresh=0, n_gen=5, temp=0.0)
        second = of(e, "STARTED")[0]["pieces"]
        end = b"" if answer.endswith(b"<|im_end|>") else b"<|im_end|>"
        assert second == first + answer + end + b"\n<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n", second
        n_past = len(of(e, "STARTED")[0]["ids"])
        name, m = e.ask("TOKENIZE", text="abc", chat=0)
        assert m["pieces"] == b"abc" and m["ends"][-1] == 3
        # a text cannot make control tokens
        name, m = e.ask("TOKENIZE", text="<|im_end|>", chat=0)
        assert len(m["ids"]) > 1
        # a prefill that was cancelled is not part of the conversation
        job = e.send("RUN", text=TEXT * 4, chat=1, fresh=0, n_gen=5, temp=0.0)
        e.until("STARTED", job=job)
        e.p.stdin.write(encode("CANCEL", job))
        done = e.until("DONE", job=job)[-1][2]
        if done["stop"] == b"cancelled" and done["n_gen"] == 0:
            e.ask("RUN", text="Three?", chat=1, fresh=0, n_gen=5, temp=0.0)
            assert of(e, "STARTED")[0]["pieces"].startswith(second) and TEXT.encode() not in of(e, "STARTED")[0]["pieces"]
            assert len(of(e, "STARTED")[0]["ids"]) > n_past
        else:
            print("  (the prefill was done before CANCEL came)")


def test_reference():
    with Engine(COMMAND) as e:
        loaded(e)
        e.ask("RUN", text=TEXT, n_gen=6, fresh=1, temp=0.0, ignore_end=1, keep_reference=1)
        ids = [t["id"] for t in of(e, "TOKEN")]
        e.ask("RUN", text=TEXT, n_gen=6, fresh=1, temp=0.0, ignore_end=1, against_reference=1, force=ids)
        assert all(abs(t["kl"]) < 1e-6 for t in of(e, "TOKEN")), "the same plan"
        e.ask("RUN", text=TEXT, n_gen=6, fresh=1, temp=0.0, ignore_end=1, against_reference=1, force=ids, alphas=[128.0] * 12, betas=[0.0] * 12)
        assert [t["id"] for t in of(e, "TOKEN")] == ids and sum(t["kl"] for t in of(e, "TOKEN")) > 1e-6, "another plan"


def test_cancel():
    with Engine(COMMAND) as e:
        loaded(e)
        worst = 0
        for _ in range(20):
            job = e.send("RUN", text="Once", n_gen=4000, fresh=1, temp=0.0, ignore_end=1)
            e.until("TOKEN", job=job)
            start = time.monotonic()
            e.p.stdin.write(encode("CANCEL", job))
            done = e.until("DONE", job=job)[-1][2]
            worst = max(worst, time.monotonic() - start)
            assert done["stop"] == b"cancelled" and done["n_gen"] < 4000
        print(f"  CANCEL to DONE: {1e3 * worst:.1f} ms at worst of 20")
        assert worst < 1.0
        # a stale CANCEL does not hit the next job; one for a waiting job takes it from the queue
        old = job
        first = e.send("RUN", text="Once", n_gen=300, fresh=1, temp=0.0, ignore_end=1)
        second = e.send("RUN", text="Twice", n_gen=3, fresh=1, temp=0.0, ignore_end=1)
        third = e.send("RUN", text="Thrice", n_gen=3, fresh=1, temp=0.0, ignore_end=1)
        e.p.stdin.write(encode("CANCEL", old) + encode("CANCEL", second))
        seen = e.until("DONE", job=third)
        ends = {j: (name, m) for name, j, m in seen if name in ("DONE", "FAILED")}
        assert ends[first][1]["n_gen"] == 300 and ends[second][0] == "FAILED" and ends[second][1]["status"] == 8
        assert ends[third][1]["n_gen"] == 3


CELLS = N_LAYER * N_HEAD
KINDS = 2 | 4  # passkey and needle fit 512 tokens of this tokenizer of bytes


def task(e, cancel_after=None, **values):
    """A task to its end: (name of the last message, it, INFLUENCE messages, RESULT messages, PROGRESS messages)."""
    values = {"lengths": [512], "n_item": 2, "seed": 1, "item_kinds": KINDS, "n_gen": 8, **values}
    job = e.send("TASK", **values)
    influence, results, progress = [], [], []
    while True:
        name, j, m = e.next(120)
        if j != job:
            continue
        if name == "FAILED":
            return name, m, influence, results, progress
        if name == "INFLUENCE":
            influence.append(m)
        if name == "PROGRESS":
            progress.append(m)
        if name == "RESULT":
            results.append(m)
            if cancel_after is not None and sum(m["n"]) >= cancel_after:
                e.p.stdin.write(encode("CANCEL", job))
                cancel_after = None
            if m["state"]:
                return name, m, influence, results, progress


def test_tasks():
    """The search's steps on the tiny model, and that they leave the conversation alone."""
    plans = {"n_plan": 3, "alphas": [0.0] * (2 * CELLS) + [128.0] * CELLS, "betas": [1.0] * (2 * CELLS) + [0.0] * CELLS}
    with Engine(COMMAND) as e:
        loaded(e)
        e.ask("RUN", text=TEXT, n_gen=6, fresh=1, temp=0.0, ignore_end=1, watch=3)
        e.ask("RUN", text=" and then", n_gen=8, temp=0.0, ignore_end=1)
        second = texts(e)
        e.ask("RUN", text=TEXT, n_gen=6, fresh=1, temp=0.0, ignore_end=1, watch=3)
        name, m, _, results, progress = task(e, kind=1, lengths=[512, 640], fresh=1)
        assert name == "RESULT" and m["state"] == 1 and m["n"] == [2, 2] and m["n_want"] == 2, m
        assert [sum(r["n"]) for r in results] == [0, 1, 2, 3, 4, 4] and all(p["phase"] == 3 for p in progress)
        assert progress[-1]["done"] == progress[-1]["total"] == 2 * (512 + 640)

        name, m, inf, _, progress = task(e, kind=2, lengths=[512, 640])
        assert name == "RESULT" and m["state"] == 1 and m["n"] == [2, 2] and all(0 < x < 10 for x in m["loss"]), m
        assert sorted((x["n_tok"], x["layer"], x["head0"], x["n_head"]) for x in inf) == [(n, l, 0, N_HEAD) for n in (512, 640) for l in range(N_LAYER)]
        for x in inf:
            nb = (x["n_tok"] + 63) // 64
            assert x["nb"] == nb and len(x["abs"]) == len(x["sum"]) == N_HEAD * nb * nb and len(x["joint"]) == N_HEAD * (nb + 1)
            assert all(a >= abs(s) - 1e-6 for a, s in zip(x["abs"], x["sum"])) and max(x["abs"]) > 0
            for h in range(N_HEAD):
                assert abs(x["joint"][h * (nb + 1) + nb]) < 1e-5  # all blocks kept: nothing is lost
                assert all(x["abs"][(h * nb + q) * nb + k] == 0 for q in range(nb) for k in range(q + 1, nb))  # the future
        again = task(e, kind=2, lengths=[512, 640])[2]
        assert again == inf  # the items are kept and the same

        # on the margin it is another influence of the same losses; under a plan curves alone
        margin = task(e, kind=2, lengths=[512, 640], loss=1)[2]
        assert [x["loss"] for x in margin] == [x["loss"] for x in inf] and all(x["joint"] != y["joint"] for x, y in zip(margin, inf))
        full = {"n_plan": 1, "alphas": [0.0] * CELLS, "betas": [1.0] * CELLS}
        same = task(e, kind=2, lengths=[512, 640], loss=1, **full)[2]
        for x, y in zip(same, margin):
            assert not x["abs"] and not x["sum"] and all(abs(a - b) < 1e-5 for a, b in zip(x["joint"], y["joint"])), (x["joint"], y["joint"])
        under = task(e, kind=2, lengths=[640], n_plan=1, alphas=[128.0 * (k % 2) for k in range(CELLS)], betas=[1.0 - k % 2 for k in range(CELLS)])[2]
        assert len(under) == N_LAYER and under[0]["loss"] != inf[-1]["loss"]
        for x in under:
            assert not x["abs"] and not x["sum"]
            for h in range(N_HEAD):  # to see everything is a change for the heads that do not
                assert (abs(x["joint"][h * 11 + 10]) > 1e-6) == ((x["layer"] * N_HEAD + h) % 2 == 1), (x["layer"], h, x["joint"][h * 11:h * 11 + 11])

        name, m, _, results, _ = task(e, kind=3, seed=9, lengths=[700], **plans)
        assert name == "RESULT" and m["n"] == [2, 2, 2], m
        assert m["loss"][0] == m["loss"][1] and m["loss"][2] != m["loss"][0]  # full attention twice, then the shortest spans
        name, m, _, _, _ = task(e, kind=4, item_kinds=1, lengths=[600], n_item=3, **plans)
        assert name == "RESULT" and m["n"] == [3, 3, 3] and m["right"][0] == m["right"][1], m

        # the conversation goes on where it was, and its map is still there
        assert e.ask("SELECT_MAP", layer=1, head=2, rows=4, cols=4)[0] == "MAP"
        name, m = e.ask("RUN", text=" and then", n_gen=8, temp=0.0, ignore_end=1)
        assert name == "DONE" and texts(e) == second, (name, m)

        # what was done before ^C is kept and told
        name, m, inf, _, _ = task(e, kind=1, lengths=[512], n_item=50, fresh=1, cancel_after=3)
        assert name == "RESULT" and m["state"] == 2 and 3 <= m["n"][0] < 50, m
        name, k, inf, _, _ = task(e, kind=2, lengths=[512], n_item=50)
        assert name == "RESULT" and k["n"] == m["n"] and len(inf) == N_LAYER, k
        name, m, inf, _, _ = task(e, kind=2, lengths=[512], n_item=50, cancel_after=1)
        assert name == "RESULT" and m["state"] == 2 and len(inf) == N_LAYER and all(x["n_item"] == m["n"][0] for x in inf), m


def test_tasks_refused():
    bad = [dict(kind=0), dict(kind=5), dict(kind=1, lengths=[]), dict(kind=1, lengths=[1]), dict(kind=1, lengths=[4097]), dict(kind=1, lengths=[512] * 17),
           dict(kind=1, n_item=0), dict(kind=1, n_item=1 << 20), dict(kind=1, n_gen=0), dict(kind=1, n_gen=1 << 20), dict(kind=1, item_kinds=0),
           dict(kind=1, item_kinds=1 << 31), dict(kind=1, docs="/nowhere/at all"), dict(kind=1, docs=b"a\0b"), dict(kind=1, item_kinds=16),
           dict(kind=1, lengths=[64]), dict(kind=2, lengths=[777]), dict(kind=2, loss=2), dict(kind=2, n_plan=2, alphas=[0.0] * 2 * CELLS, betas=[1.0] * 2 * CELLS), dict(kind=2, n_plan=-1),
           dict(kind=2, n_plan=1, alphas=[0.0], betas=[1.0]), dict(kind=2, n_plan=1, alphas=[float("inf")] * CELLS, betas=[1.0] * CELLS),
           dict(kind=3, n_plan=0), dict(kind=3, n_plan=65), dict(kind=3, n_plan=-1),
           dict(kind=3, n_plan=1, alphas=[0.0], betas=[1.0]), dict(kind=3, n_plan=1, alphas=[0.0] * CELLS, betas=[float("nan")] * CELLS),
           dict(kind=4, item_kinds=4, n_plan=1, alphas=[0.0] * CELLS, betas=[1.0] * CELLS), dict(kind=4, item_kinds=999, n_plan=1, alphas=[0.0] * CELLS, betas=[1.0] * CELLS)]
    with Engine(COMMAND) as e:
        e.hello()
        assert task(e, kind=1)[0] == "FAILED"  # no model
    with Engine(COMMAND) as e:
        loaded(e)
        for values in bad:
            name, m, _, _, _ = task(e, **values)
            assert name == "FAILED" and len(m["text"]) > 10, (values, m)
        assert task(e, kind=1, n_item=1, fresh=1)[0] == "RESULT"  # it still works


def test_slow_reader():
    """Nobody reads for a while: all tokens come in order, snapshots fewer, and the run does not wait for the reader."""
    with Engine(COMMAND) as e:
        loaded(e)
        job = e.send("RUN", text=TEXT, n_gen=1500, fresh=1, watch=1, stats_every=1, temp=0.0, ignore_end=1)
        time.sleep(2.0)
        seen = e.until("DONE", "FAILED", job=job, timeout=300)
        tokens = [m["index"] for name, _, m in seen if name == "TOKEN"]
        stats = sum(name == "STATS" for name, _, m in seen)
        assert tokens == list(range(1500)) and 1 < stats < 1500, (len(tokens), stats)
        print(f"  {len(tokens)} tokens, {stats} statistics")


def test_refused():
    with Engine(COMMAND) as e:
        assert e.hello() and e.ask("RUN", text="x", n_gen=1)[1]["status"] == 2  # nothing loaded
        assert e.ask("TOKENIZE", text="x")[0] == "FAILED"
        for bad in (dict(path=""), dict(path="/no/such/file.gguf"), dict(path=b"a\0b"), dict(path="x" * 5000), dict(path=LLAMA, device="gpu"),
                    dict(path=LLAMA, device="x" * 100), dict(path=LLAMA, kv_type="q4"), dict(path=LLAMA, n_threads=5000), dict(path=__file__)):
            name, m = e.ask("LOAD", **{"device": "cpu", **bad})
            assert name == "FAILED" and len(m["text"]) > 10, (bad, m)
        loaded(e)
        nan = float("nan")
        for bad in (dict(ids=[276]), dict(ids=[-1]), dict(text=""), dict(n_gen=1 << 31), dict(alphas=[0.0], betas=[1.0]),
                    dict(alphas=[0.0] * 12), dict(alphas=[nan] * 12, betas=[1.0] * 12), dict(measure_alphas=[0.0] * 11, measure_betas=[0.0] * 11),
                    dict(force=[1, 2, 3]), dict(force=[999]), dict(temp=nan), dict(temp=-1.0), dict(top_k=-5), dict(top_p=2.0), dict(against_reference=1),
                    dict(text=TEXT * 100)):
            name, m = e.ask("RUN", **{"text": "x", "n_gen": 2, "fresh": 1, **bad})
            assert name == "FAILED" and m["status"] in (2, 3), (bad, name, m)
        job = e.send("DONE", stop="?")  # a message engines do not take
        assert e.until("FAILED", job=job)
        assert e.ask("RUN", text="still here", n_gen=2, fresh=1)[0] == "DONE"


def test_ends():
    def ended(e, code, timeout=10):
        try:
            while True:
                e.next(timeout)
        except Closed:
            pass
        assert e.p.wait(timeout) == code, e.p.returncode

    with Engine(COMMAND) as e:  # QUIT
        loaded(e)
        e.send("QUIT")
        ended(e, 0)
    with Engine(COMMAND) as e:  # end of input, in the middle of a run
        loaded(e)
        job = e.send("RUN", text="Once", n_gen=4000, fresh=1, ignore_end=1, temp=0.0)
        e.until("TOKEN", job=job)
        e.p.stdin.close()
        ended(e, 0)
        e.p.stdin = open(os.devnull, "wb")
    with Engine(COMMAND, stderr=open(os.devnull, "w")) as e:  # not a message
        e.hello()
        e.p.stdin.write(b"GET / HTTP/1.1\r\nHost: engine\r\n\r\n")
        ended(e, 3)
    with Engine(COMMAND, stderr=open(os.devnull, "w")) as e:  # a length that lies
        e.hello()
        e.p.stdin.write(struct.pack("<IHHII", 0xfffffff8, 4, 0, 1, 0))
        ended(e, 3)
    with Engine(COMMAND) as e:  # ^C of the terminal is not for the engine
        loaded(e)
        e.p.send_signal(signal.SIGINT)
        assert e.ask("RUN", text="x", n_gen=2, fresh=1)[0] == "DONE"
    # the reader goes away: no SIGPIPE, no busy loop
    e = Engine(COMMAND)
    loaded(e)
    e.send("RUN", text="Once", n_gen=4000, fresh=1, ignore_end=1, temp=0.0)
    e.p.stdout.close()
    assert e.p.wait(60) == 0
    e.p.stdin.close()


if not os.path.exists(COMMAND[0]):
    print(f"skipped: {COMMAND[0]} is not built")
    sys.exit(77)
for name, test in list(globals().items()):
    if name.startswith("test_"):
        print(name, flush=True)
        test()
print("ok")
