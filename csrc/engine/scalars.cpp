#include "scalars.h"

#include <cstring>
#include <stdexcept>

#include "../rules/all.h"

namespace {

template <class Rule>
void prepare(std::int64_t step, const Group& group, std::vector<double>& out) {
  typename Rule::Hyperparameters hyperparameters;
  static_assert(sizeof(hyperparameters) <= sizeof(group.values), "a group has so many numbers");
  std::memcpy(&hyperparameters, group.values, sizeof(hyperparameters));
  const auto scalars = Rule::prepare(step, hyperparameters);
  double row[sizeof(scalars) / sizeof(double)];
  std::memcpy(row, &scalars, sizeof(scalars));
  out.insert(out.end(), std::begin(row), std::end(row));
}

}  // namespace

void prepare_scalars(const std::string& rule, std::int64_t step, const Group& group,
                     std::vector<double>& out) {
#define PREPARE_IF_NAMED(Rule) \
  if (rule == Rule<double>::name) return prepare<Rule<double>>(step, group, out);
  FOR_EACH_RULE(PREPARE_IF_NAMED)
#undef PREPARE_IF_NAMED
  throw std::invalid_argument("there is no rule named " + rule);
}
