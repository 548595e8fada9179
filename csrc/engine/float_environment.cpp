#include "float_environment.h"

#ifdef __x86_64__
#include <xmmintrin.h>
#elif !defined(__aarch64__)
#include <cfenv>
#endif

namespace {

#ifdef __x86_64__

// All exceptions masked, rounding to nearest, neither flush-to-zero nor denormals-are-zero.
constexpr unsigned defaults = 0x1f80;

class FloatEnvironment {
 public:
  FloatEnvironment() { _mm_setcsr(defaults); }
  ~FloatEnvironment() { _mm_setcsr(saved_); }

 private:
  const unsigned saved_ = _mm_getcsr();
};

#elif defined(__aarch64__)

class FloatEnvironment {
 public:
  FloatEnvironment() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    set(0);  // rounding to nearest, no flush to zero, no trap
  }
  ~FloatEnvironment() { set(saved_); }

 private:
  static void set(unsigned long value) { asm volatile("msr fpcr, %0" : : "r"(value)); }

  unsigned long saved_;
};

#else

class FloatEnvironment {
 public:
  FloatEnvironment() {
    std::fegetenv(&saved_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~FloatEnvironment() { std::fesetenv(&saved_); }

 private:
  std::fenv_t saved_;
};

#endif

}  // namespace

// In a file of its own: compilers do not know that arithmetic depends on these settings, and could
// move it past a change of them within one function.
void in_float_environment(const std::function<void()>& task) {
  const FloatEnvironment environment;
  task();
}
