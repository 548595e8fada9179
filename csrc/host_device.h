// The one macro that lets nvcc and a plain C++ compiler read the same header.
#pragma once

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HOST_DEVICE [[gnu::always_inline]] inline
#endif
