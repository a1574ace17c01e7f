// The loss scale of mixed precision, the twin of loss_scale.py: one thread, once per step. All it
// knows lies in device memory, so that the same launch can be run again for the next step.
#include "common.h"

__global__ void loss_scale_update_kernel(
    const REAL* __restrict__ norm, REAL* __restrict__ scale, int* __restrict__ counts,  // (2,)
    REAL* __restrict__ norm_sum, REAL growth, REAL backoff, int growth_interval) {
  const REAL value = norm[0];
  if (!(value - value == 0)) {  // infinite or NaN: the step was skipped
    scale[0] *= backoff;
    counts[0] = 0;
    counts[1]++;
    return;
  }
  norm_sum[0] += value;
  if (++counts[0] < growth_interval) return;
  counts[0] = 0;
  const REAL larger = scale[0] * growth;
  if (larger - larger == 0) scale[0] = larger;
}
