// Inverted dropout, the twin of dropout.py.
//
// Philox is a function from a counter and a key to four random words, with no state to hand from
// one thread to the next: a thread draws for its four elements with the counter that is theirs. The
// same kernel serves backward, which draws the mask of the forward again: x is read once, out is
// written once, and no mask is.
#include "common.h"

constexpr int WORDS = 4;

// Philox-4x32-10 (Salmon et al., 2011): ten rounds of two multiplications; the key grows by a
// constant after each.
__device__ __forceinline__ void philox4x32(unsigned (&counter)[WORDS], unsigned key0,
                                           unsigned key1) {
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const unsigned high0 = __umulhi(0xD2511F53u, counter[0]), low0 = 0xD2511F53u * counter[0];
    const unsigned high1 = __umulhi(0xCD9E8D57u, counter[2]), low1 = 0xCD9E8D57u * counter[2];
    counter[0] = high1 ^ counter[1] ^ key0;
    counter[1] = low1;
    counter[2] = high0 ^ counter[3] ^ key1;
    counter[3] = low0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

// One thread: note where the stream is, (seed, counter), and move it on by `count`.
__global__ void dropout_draw_kernel(unsigned long long* place, unsigned long long* drawn,
                                    int count) {
  drawn[0] = place[0];
  drawn[1] = place[1];
  place[1] += count;
}

__global__ void dropout_kernel(const STORE* __restrict__ x, STORE* __restrict__ out,
                               const unsigned long long* __restrict__ drawn,
                               unsigned threshold,  // of 2^24: below it an element is dropped
                               REAL scale, int size) {
  const unsigned long long block = blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x;
  const unsigned long long i = block * WORDS;
  if (i >= size) return;
  const unsigned long long seed = drawn[0], count = drawn[1] + block;
  unsigned word[WORDS] = {unsigned(count), unsigned(count >> 32), 0, 0};
  philox4x32(word, unsigned(seed), unsigned(seed >> 32));

  REAL factor[WORDS], value[WORDS];
#pragma unroll
  for (int k = 0; k < WORDS; k++) factor[k] = (word[k] >> 8) >= threshold ? scale : REAL(0);
  if (i + WORDS <= size) {
    load(x + i, value);
#pragma unroll
    for (int k = 0; k < WORDS; k++) value[k] *= factor[k];
    store(out + i, value);
  } else {
#pragma unroll
    for (int k = 0; k < WORDS; k++)
      if (i + k < size) out[i + k] = STORE(REAL(x[i + k]) * factor[k]);
  }
}
