/* sha256.h -- SHA-256 (FIPS 180-4) of bytes in memory: the fingerprint of a model's header. No library we link has it. */
#ifndef MOA_BASE_SHA256_H
#define MOA_BASE_SHA256_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct moa_sha256 {
    uint32_t state[8];
    uint64_t n_bytes;
    uint8_t block[64]; /* the last n_bytes % 64 bytes wait here */
    bool instructions; /* this processor has some for it: a header of 6 MB in 4 ms instead of 20 */
} moa_sha256;

void moa_sha256_init(moa_sha256 *h);
void moa_sha256_add(moa_sha256 *h, const void *bytes, size_t n);
void moa_sha256_hex(moa_sha256 *h, char out[65]); /* ends the hash; lower-case hex, NUL-terminated */

#endif
