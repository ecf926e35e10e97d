/* The main of a fuzz target where libFuzzer is not used: runs every file of the folders given, then mutations of them.
 *
 *   fuzz_NAME [--mutations=N] FOLDER_OR_FILE...
 *
 * A mutation cuts a seed, flips bits, overwrites a number with an extreme value, doubles or drops a part, or joins two seeds.
 * The generator starts from a fixed state: a failure here is a failure everywhere. On a crash the input is in the file
 * named on the first line of output after "last input"; it is written before each run only with --keep=FILE.
 * Without any seed the test has nothing to say: exit 77. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/base/buf.h"
#include "core/base/file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MAX_SEEDS = 4096, MAX_SEED_BYTES = 4 << 20 };

typedef struct seeds {
    moa_buf file[MAX_SEEDS];
    size_t n;
} seeds;

static uint64_t state = 0x9e3779b97f4a7c15u;

static uint64_t draw(uint64_t below) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return below ? state % below : 0;
}

static int not_hidden(const struct dirent *e) {
    return e->d_name[0] != '.';
}

static int load(seeds *s, const char *path) {
    struct stat st;
    moa_err err = {0};
    if (stat(path, &st) != 0) return 0;
    if (S_ISDIR(st.st_mode)) {
        struct dirent **entries = NULL;
        const int n = scandir(path, &entries, not_hidden, alphasort); /* sorted: mutations repeat */
        int ok = n >= 0;
        for (int i = 0; i < n; i++) {
            char below[4096];
            (void)snprintf(below, sizeof below, "%s/%s", path, entries[i]->d_name);
            ok = ok && load(s, below);
            free(entries[i]);
        }
        free(entries);
        return ok;
    }
    if (s->n == MAX_SEEDS || moa_file_read(path, MAX_SEED_BYTES, &s->file[s->n], &err) != MOA_OK) {
        (void)fprintf(stderr, "%s: %s\n", path, s->n == MAX_SEEDS ? "too many seeds" : err.text);
        return 0;
    }
    s->n++;
    return 1;
}

static void mutate_once(moa_buf *b, const seeds *s) {
    static const uint64_t extremes[] = {
        0,          1,          0x7f,        0x80,         0xff,      0x7fff,     0xffff,
        0x7fffffff, 0x80000000, 0xffffffffu, 0x100000000u, INT64_MAX, UINT64_MAX, UINT64_MAX - 31};
    const size_t at = (size_t)draw(b->size), left = b->size - at;
    switch (draw(7)) {
    case 0: b->size = at; break;
    case 1:
        if (left) b->data[at] = (char)(b->data[at] ^ (1 << draw(8)));
        break;
    case 2:
        if (left) b->data[at] = (char)draw(256);
        break;
    case 3: {
        const uint64_t value = extremes[draw(sizeof extremes / sizeof *extremes)];
        const size_t n = (size_t)1 << draw(4);
        if (left >= n) memcpy(b->data + at, &value, n);
        break;
    }
    case 4: { /* drop a part */
        const size_t n = (size_t)draw(left < 64 ? left + 1 : 64);
        memmove(b->data + at, b->data + at + n, left - n);
        b->size -= n;
        break;
    }
    case 5: { /* double a part */
        const size_t n = (size_t)draw(left < 64 ? left + 1 : 64);
        char part[64];
        memcpy(part, b->data + at, n);
        moa_buf_append(b, part, n);
        memmove(b->data + at + n, b->data + at, b->size - at - n);
        memcpy(b->data + at, part, n);
        break;
    }
    default: { /* the end of another seed */
        const moa_buf *other = &s->file[draw(s->n)];
        const size_t from = (size_t)draw(other->size);
        b->size = at;
        moa_buf_append(b, other->data + from, other->size - from);
        break;
    }
    }
}

/* the target sees a block of just the input's size, so that a sanitizer sees one byte too many */
static void run(const char *data, size_t size, const char *keep) {
    uint8_t *copy = malloc(size ? size : 1);
    if (!copy) abort();
    if (size) memcpy(copy, data, size);
    if (keep && moa_file_save(keep, copy, size, 0600, 0, NULL) != MOA_OK) abort();
    (void)LLVMFuzzerTestOneInput(copy, size);
    free(copy);
}

int main(int argc, char **argv) {
    long mutations = 0;
    const char *keep = NULL;
    int ok = 1;
    seeds *s = calloc(1, sizeof *s);
    if (!s) return 4;
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "--mutations=", 12) == 0)
            mutations = strtol(argv[i] + 12, NULL, 10);
        else if (strncmp(argv[i], "--keep=", 7) == 0)
            keep = argv[i] + 7;
        else
            ok = ok && load(s, argv[i]);
    }
    if (s->n == 0) {
        (void)fprintf(stderr, "no seeds: nothing was run\n");
        free(s);
        return 77;
    }
    for (size_t i = 0; i < s->n; i++)
        run(s->file[i].data, s->file[i].size, keep);
    for (long i = 0; i < mutations; i++) {
        const moa_buf *seed = &s->file[draw(s->n)];
        moa_buf b = {0};
        moa_buf_append(&b, seed->data, seed->size);
        for (uint64_t n = 1 + draw(4); n > 0 && moa_buf_ok(&b) && b.data; n--)
            mutate_once(&b, s);
        if (moa_buf_ok(&b) && b.data) run(b.data, b.size, keep);
        moa_buf_free(&b);
    }
    (void)printf("%zu seeds and %ld mutations\n", s->n, mutations);
    for (size_t i = 0; i < s->n; i++)
        moa_buf_free(&s->file[i]);
    free(s);
    return ok ? 0 : 1;
}
