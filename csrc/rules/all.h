// The list of rules that every engine is built for: a new rule is one header and one line here.
// Its `update` returns what a step takes off the parameter; step_element.h takes it off. The last
// two of its scalars are weight_decay_rate and step.
#pragma once

#include "adamod.h"

#define FOR_EACH_RULE(X) X(AdaMod)
