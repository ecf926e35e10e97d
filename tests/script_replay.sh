#!/bin/bash
# sessions replay: what was kept is made again, token by token; what was changed in between is found; runs of before, without tokens.
. "$(dirname "$0")/batch_lib.sh" "$1"
command -v python3 > /dev/null || { echo "skipped: no python3"; exit 77; }
llama=$source/tests/data/tiny_llama.gguf
text="the quick brown fox jumps over the lazy dog, again and again and again. "
store=$XDG_STATE_HOME/moascope/sessions.db
sql() { python3 -c 'import sqlite3,sys; c=sqlite3.connect(sys.argv[1]); c.execute("PRAGMA foreign_keys=ON"); print(c.execute(sys.argv[2]).fetchall()); c.commit()' "$store" "$1"; }
newest() { sql "SELECT max(id) FROM session" | tr -dc 0-9; }
cpu="--device cpu -q"

expect 3 "$moascope" sessions replay; says "no earlier session"
# a chat of three turns under a plan, the rules changed before the third, drawn, then greedy
printf 'one\ntwo\n:plan uniform:0.5\n:set temp 0\nthree\n:quit\n' | "$moascope" chat "$llama" $cpu --plan uniform:0.75 -n 40 --seed 5 --temp 0.9 > "$temp/out" 2> "$temp/err" ||
    complain "chat: $(tail -1 "$temp/err")"
chat=$(newest)
expect 0 "$moascope" sessions replay $cpu
grep -q "run 1: [0-9]* of [0-9]* tokens the same" "$temp/out" || complain "replay says nothing of run 1"
expect 0 "$moascope" sessions replay "$chat" $cpu --json "$temp/c.json"
check "$temp/c.json" "len(j['runs'])==3 and all(r['same'] and r['n_made']>0 and r['prompt_by']==r['compared_by']=='ids' for r in j['runs'])"
expect 0 "$moascope" run "$llama" $cpu -p "$text$text$text" -n 30 --ignore-eos --seed 7 --plan sink
plain=$(newest)
expect 0 "$moascope" run "$llama" $cpu --chat -p "hello" -n 12 --seed 9 --kv f32
chatted=$(newest)
expect 0 "$moascope" sessions replay "$plain" $cpu
expect 3 "$moascope" sessions replay "$chatted" $cpu; says "--kv f32"
expect 0 "$moascope" sessions replay "$chatted" $cpu --kv f32
expect 2 "$moascope" sessions replay x; says "'x'"
expect 3 "$moascope" sessions replay 999999999
expect 3 "$moascope" sessions replay "$plain" $cpu --model "$source/tests/data/tiny_qwen2.gguf"; says "fingerprint"

# a run of the screen: its tokens are kept, its prompt is text
sql "UPDATE run_tokens SET ids=x'', n_past=-1 WHERE run=(SELECT id FROM run WHERE session=$plain)" > /dev/null
sql "UPDATE run SET kind='plan' WHERE session=$plain" > /dev/null
expect 0 "$moascope" sessions replay "$plain" $cpu --json "$temp/s.json"
check "$temp/s.json" "j['runs'][0]['same'] and j['runs'][0]['prompt_by']=='text' and j['runs'][0]['compared_by']=='ids'"
sql "UPDATE run SET kind='compare' WHERE session=$plain" > /dev/null
expect 0 "$moascope" sessions replay "$plain" $cpu; grep -q "not replayed: it was given" "$temp/out" || complain "a comparison is replayed"
sql "UPDATE run SET kind='plan' WHERE session=$plain" > /dev/null

# what is different is told: another seed, another plan, a token, a length
fails() { # SESSION WORDS: replayed, it differs
    expect 1 "$moascope" sessions replay "$1" $cpu --json "$temp/f.json"; says "$2"
    check "$temp/f.json" "j['runs'][-1]['same'] is False and 'error' in j['runs'][-1]"
}
sql "UPDATE run SET seed=8 WHERE session=$plain" > /dev/null; fails "$plain" "differs at token"
sql "UPDATE run SET seed=7, plan=(SELECT plan FROM run WHERE session=$chat LIMIT 1) WHERE session=$plain" > /dev/null
expect 1 "$moascope" sessions replay "$plain" $cpu; says "differs at token"
expect 0 "$moascope" run "$llama" $cpu -p "$text" -n 30 --ignore-eos --seed 7
cut=$(newest)
sql "UPDATE run_tokens SET made=substr(made, 1, 80) WHERE run=(SELECT id FROM run WHERE session=$cut)" > /dev/null
fails "$cut" "token 21 of 20"
sql "UPDATE run SET stop='cancelled' WHERE session=$cut" > /dev/null # interrupted then: no more is asked for
expect 0 "$moascope" sessions replay "$cut" $cpu; grep -q "20 of 20" "$temp/out" || complain "an interrupted run: $(cat "$temp/out")"
sql "UPDATE run_tokens SET made=zeroblob(84) WHERE run=(SELECT id FROM run WHERE session=$cut)" > /dev/null
expect 1 "$moascope" sessions replay "$cut" $cpu; says "differs at token 1 of 21"
sql "UPDATE run_tokens SET ids=x'ffffff7f' WHERE run=(SELECT id FROM run WHERE session=$cut)" > /dev/null
expect 3 "$moascope" sessions replay "$cut" $cpu; says "2147483647"
sql "UPDATE run SET sampling='{\"temp\": 1e99}' WHERE session=$cut" > /dev/null
expect 3 "$moascope" sessions replay "$cut" $cpu; says "settings"

# kept before there were tokens: the text is told apart, and that is said
sql "DELETE FROM run_tokens WHERE run IN (SELECT id FROM run WHERE session IN ($chat, $chatted))" > /dev/null
expect 0 "$moascope" sessions replay "$chat" $cpu; grep -q "made into tokens again; compared by its text" "$temp/out" || complain "an old chat: $(cat "$temp/out")"
expect 0 "$moascope" sessions replay "$chatted" $cpu --kv f32
sql "UPDATE run SET n_prompt=n_prompt+1 WHERE session=$chatted" > /dev/null
expect 3 "$moascope" sessions replay "$chatted" $cpu --kv f32; says "system message"
sql "UPDATE run SET output=CAST('no such text' AS BLOB) WHERE session=$chat" > /dev/null
expect 1 "$moascope" sessions replay "$chat" $cpu; says "it was \"no such text\""

# the workbench itself: full attention, then the plan
printf ':sync loaded\n:run full\n:sync one\n:plan open uniform:0.5\n:run plan\n:sync two\n:quit\n' > "$temp/script"
expect 0 "$moascope" "$llama" --device cpu --no-restore --size 120x40 --script "$temp/script" -p "$text$text$text$text" -n 24 --seed 5 --temp 0.8
expect 0 "$moascope" sessions replay $cpu --json "$temp/w.json"
check "$temp/w.json" "len(j['runs'])==2 and all(r['same'] and r['n_made']==24 and r['prompt_by']=='text' and r['compared_by']=='ids' for r in j['runs'])"
[ "$(sql "SELECT count(DISTINCT output) FROM run WHERE session=$(newest)")" = "[(2,)]" ] || complain "the plan changes nothing: the test is too weak"

# pruning takes the tokens with the runs
expect 0 "$moascope" sessions prune --keep 0
[ "$(sql "SELECT count(*) FROM run_tokens")" = "[(0,)]" ] || complain "tokens of pruned runs stay"
[ $failed -eq 0 ] && echo "sessions replay: as it should be"
exit $failed
