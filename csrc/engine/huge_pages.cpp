#include "huge_pages.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstdint>

void prefer_huge_pages([[maybe_unused]] void* address, [[maybe_unused]] std::size_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr std::uintptr_t page = 1 << 21;  // of x86-64, and of Arm with base pages of 4 KB
  const auto begin = (reinterpret_cast<std::uintptr_t>(address) + page - 1) / page * page;
  const auto end = (reinterpret_cast<std::uintptr_t>(address) + bytes) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}
