// The list of rules that every engine is built for: a new rule is one header and one line here.
#pragma once

#include "adamod.h"

#define FOR_EACH_RULE(X) X(AdaMod)
