// What a rule tells of one element to whoever watches a step.
#pragma once

template <typename T>
struct Observation {
  T rate;          // the element's own learning rate
  T bounded_rate;  // what the rule made of it
  T update;        // what the step took off the parameter, weight decay apart
  T activity;      // 0: the element has never had a gradient
};
