// What a rule says of its states' values, for formats that keep them in few bits.
#pragma once

// Where a value leaves the range that its neighbours share, it is stored too large or too small;
// a rule knows on which side a wrong state does no harm.
enum class Values {
  of_both_signs,   // stored as zero or the smallest, at random
  safe_too_large,  // never negative: what is too small becomes the smallest, never zero
  safe_too_small,  // never negative: what is too large becomes the largest
};
