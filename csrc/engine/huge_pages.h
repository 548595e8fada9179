// Memory in pages of megabytes rather than kilobytes, where the system grants them.
#pragma once

#include <cstddef>

// Asks for huge pages for fresh memory that is about to be written, for as much of it as fills such
// pages. Advice only: memory that is not granted any works as before.
void prefer_huge_pages(void* address, std::size_t bytes);
