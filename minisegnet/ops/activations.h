// Activation functions on the device and their slopes, for every kernel with one in its formula.
// Conventions at the kinks are those of activations.py. Comparisons are written so that NaN, for
// which all of them are false, comes out as NaN.
#pragma once
#include "common.h"

enum Activation { NONE, RELU, RELU6, HARDSIGMOID, HARDSWISH, SIGMOID };

constexpr REAL SIXTH = REAL(1) / 6;  // 6 * SIXTH is 1 exactly, in float and in double

__device__ __forceinline__ REAL clip_to_6(REAL x) {
  return x < 0 ? REAL(0) : x > 6 ? REAL(6) : x;
}

template <int KIND>
__device__ __forceinline__ REAL activation(REAL x) {
  if (KIND == RELU) return x < 0 ? REAL(0) : x;
  if (KIND == RELU6) return clip_to_6(x);
  if (KIND == HARDSIGMOID) return clip_to_6(x + 3) * SIXTH;
  if (KIND == HARDSWISH) return x * (clip_to_6(x + 3) * SIXTH);
  if (KIND == SIGMOID) {
    // exp(-|x|) never overflows; for x < 0 the same fraction is exp(x) / (1 + exp(x)).
    const REAL small = exp(x < 0 ? x : -x);
    return (x < 0 ? small : REAL(1)) / (1 + small);
  }
  return x;
}

// The slope, from what the forward pass keeps: sigmoid its output, the others their input. relu and
// relu6 may keep either: both lie within the kinks, or neither does.
template <int KIND>
__device__ __forceinline__ REAL activation_slope(REAL kept) {
  if (KIND == RELU) return kept > 0 ? 1 : 0;
  if (KIND == RELU6) return kept > 0 && kept < 6 ? 1 : 0;
  if (KIND == HARDSIGMOID) return kept > -3 && kept < 3 ? SIXTH : REAL(0);
  // The line (2x + 3) / 6 would be -1/2 at -3 and 3/2 at 3: outside, the slope jumps.
  if (KIND == HARDSWISH) return kept >= 3 ? 1 : kept <= -3 ? 0 : (2 * kept + 3) * SIXTH;
  if (KIND == SIGMOID) return kept * (1 - kept);
  return 1;
}
