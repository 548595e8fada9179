// Rows of scalars for steps whose counts and hyperparameters the host knows.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "row.h"

// Appends the scalars of step `step` of `rule`, in float64, to `out`; `group` holds numbers only.
// Throws std::invalid_argument for a rule that does not exist.
void prepare_scalars(const std::string& rule, std::int64_t step, const Group& group,
                     std::vector<double>& out);
