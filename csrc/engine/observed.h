// What a look at a step keeps: the learning rates and updates of a segment of one tensor, summed
// up.
//
// All of it is the same on every backend. Counts, minima and maxima have no order; sums are float64
// in one order of additions: lane i adds up elements i, i + lanes, ... in turn, then the upper half
// of the lanes is added to the lower half until one is left.
#pragma once

#include <cstdint>

#include "../host_device.h"
#include "bits.h"
#include "row.h"

constexpr int observed_lanes = 256;
constexpr int histogram_bins = 64;
constexpr int histogram_exponent = -40;  // bin 0 begins at 2^-40, and each next one twice as high

// 64-bit words all: adamod_fused/observed.py and triton_kernels/observe.py read them as a matrix.
// An element whose gradient or update is inf or NaN is counted as such and nowhere else.
struct Observed {
  double step;  // the number of the step seen; 0: none was
  double rate_sum, bounded_rate_sum, grad_square_sum, update_square_sum;
  double rate_min, rate_max, bounded_rate_min, bounded_rate_max;
  std::int64_t bounded, dead, nonfinite;  // elements
  std::int64_t rate_histogram[histogram_bins], bounded_rate_histogram[histogram_bins];
};

static_assert(sizeof(Observed) == 8 * (12 + 2 * histogram_bins),
              "adamod_fused/observed.py counts on these 64-bit columns");

// Where the observations of a row's segments begin. A row has room for one segment more than fits
// into its chunks, so that no count of segments has to be kept beside that of chunks.
HOST_DEVICE std::int64_t first_observed(const Row& row, std::int64_t index,
                                        std::int64_t chunk_size) {
  return row.first_chunk * chunk_size / segment_size + index;
}

// The bin of a rate, by its float32 exponent; the first and the last bin take what lies outside.
HOST_DEVICE int histogram_bin(float rate) {
  const auto exponent = static_cast<std::int32_t>(bit_cast<std::uint32_t>(rate) >> 23);
  const std::int32_t bin = exponent - (127 + histogram_exponent);
  return bin < 0 ? 0 : bin < histogram_bins ? bin : histogram_bins - 1;
}
