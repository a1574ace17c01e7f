// Where the taps of a sliding window fall, as _windows.py.
#pragma once

// The output that tap k of an axis sent the input `at` to, or -1 if there is none.
__device__ __forceinline__ int output_of(int at, int k, int size, int stride, int padding,
                                         int dilation) {
  const int o = at + padding - k * dilation;
  return o >= 0 && o % stride == 0 && o / stride < size ? o / stride : -1;
}
