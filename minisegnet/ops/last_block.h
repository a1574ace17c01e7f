// Sums over several blocks in one launch: the last block to finish adds up what all have left.
#pragma once

// Whether this block is the last of `blocks` to come here; it then sees what the others wrote.
// `finished` counts them, and is 0 between launches, which follow one another. All threads of a
// block must call it.
__device__ __forceinline__ bool is_last_block(unsigned* finished, unsigned blocks) {
  __shared__ bool last;
  __threadfence();  // what was written is there for all before the block is counted
  __syncthreads();
  if (threadIdx.x == 0 && threadIdx.y == 0)  // counts up to the number of blocks, then is 0 again
    last = atomicInc(finished, blocks - 1) == blocks - 1;
  __syncthreads();
  if (last) __threadfence();
  return last;
}
