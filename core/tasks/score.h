/* score.h -- how an answer is judged.
 *
 *   exact     equal after normalising: lower case, ASCII punctuation and the articles a, an, the dropped, spaces joined (SQuAD's rule)
 *   F1        of the multisets of words after the same normalising: 2PR/(P+R)
 *   ROUGE-L   F of the longest common subsequence of words; words are runs of [a-z0-9] after lower-casing (rouge_score's rule)
 *   number    the first run of digits of the answer equals the expected one, thousands' commas dropped
 *   word      the first word of the answer that is one of the candidates equals the expected one
 *
 * An accuracy of n answers carries Wilson's score interval, which stays inside [0, 1] and means something at 50/50 too. */
#ifndef MOA_TASKS_SCORE_H
#define MOA_TASKS_SCORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* 0..1 each; NAN without memory, or (ROUGE-L) for more than 2^28 pairs of words. Both empty after normalising: 1. */
double moa_score_exact(const char *answer, const char *expected);
double moa_score_f1(const char *answer, const char *expected);
double moa_score_rouge_l(const char *answer, const char *expected);

/* Copies the first number of text into out, cut to what fits. False: there is none. */
bool moa_score_number(const char *text, char *out, size_t out_bytes);
/* The index of the candidate that comes first as a whole word (ASCII letters, case ignored), -1: none. */
int moa_score_word(const char *text, const char *const *candidates, int n);

/* Wilson's score interval of right in n at 95 %: [*low, *high]; 0 and 1 for n = 0 */
void moa_score_wilson(int64_t right, int64_t n, double *low, double *high);

#endif
