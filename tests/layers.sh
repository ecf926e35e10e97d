#!/usr/bin/env bash
# Proves the table of folders: who may include whom. One line a folder: folder, then the prefixes it may include.
# A folder may always include itself. tui includes everything, but cuda only through core/engine/backend.h.
set -u
cd "$(dirname "$0")/.." || exit 1
bad=0
check() { # folder, allowed prefixes...
  local folder=$1 file inc ok p; shift
  [ -d "$folder" ] || return 0
  while IFS=: read -r file inc; do
    [ -n "$inc" ] || continue
    ok=0
    for p in "$folder/" gen_ "$@"; do [[ $inc == "$p"* ]] && ok=1; done
    [[ $inc == */* ]] || ok=1 # generated lists: version.h, quant_list.h
    if [ $ok = 0 ]; then echo "layers: $file includes \"$inc\", which $folder may not"; bad=1; fi
  done < <(grep -rHoE --include='*.c' --include='*.h' --include='*.cu' --include='*.cuh' '^#include "[^"]+"' "$folder" | sed -E 's/#include "([^"]+)"/\1/')
}
check core/base
check core/model core/
check core/engine core/
check core/cpu core/
check core/tasks core/
check cuda core/
check plans core/base/ core/engine/spans.h
check viz core/base/
check sessions core/ plans/
check tui core/ plans/ viz/ sessions/
# terminal libraries stay in their one file
grep -rlE --include='*.c' --include='*.h' '#include <(ncurses|curses|ncursesw/.*|readline/.*)>' core plans viz sessions cuda tui 2>/dev/null |
  grep -vE '^tui/term\.c$|^tui/batch/chat\.c$' | while read -r f; do echo "layers: $f includes ncurses or readline; only tui/term.c may"; exit 1; done || bad=1
# threads start in these files alone: what opens none of them is left out under the thread sanitizer (tests/CMakeLists.txt)
grep -rlE --include='*.c' --include='*.h' --include='*.cu' --include='*.cuh' 'pthread_create|thrd_create' core plans viz sessions cuda tui |
  grep -vxE 'core/cpu/pool\.c|core/model/gguf_many\.c|core/engine/profile\.c|plans/search\.c|tui/search_(file|solve)\.c|cuda/upload\.cu' |
  while read -r f; do echo "layers: $f starts threads; list it here, and see what the thread sanitizer leaves out"; exit 1; done || bad=1
[ $bad = 0 ] && echo "layers: every include is one its folder may make"
exit $bad
