// The numbers that divide a step over a GPU; none of them changes a result. `python -m
// bench.trials` builds the engine with others and compares them; bench/NOTES.md says why these are
// the ones.
#pragma once

namespace cuda_engine {

struct Tuning {
  // Elements that are counted as one unit in Row::first_chunk. A block updates one chunk: large
  // enough that finding its row costs little beside the four to eight rounds of 128-bit accesses
  // that each thread makes, small enough that a tensor of a million elements gives every
  // multiprocessor a block.
  int chunk_size = 8192;

  int block_threads = 256;

  // Blocks that a multiprocessor must have registers for; 0 leaves the registers to the compiler.
  int min_blocks = 0;

  // A group, neighbouring elements that one thread takes, is 128 bits of the narrowest stream; or
  // of the widest, so that a warp's accesses to that one have no gaps, and shorter ones to the
  // others.
  bool group_by_widest = false;

  // Groups that a thread loads before its first arithmetic.
  int groups = 1;

  // As many blocks as run at once, each in a loop over chunks, in place of a block a chunk.
  bool persistent = false;

  // Whether vectors are marked as the first to leave the caches (PTX ISA: .cs).
  bool streaming_loads = false;
  bool streaming_stores = false;

  // Bytes of a table by value, the kernel's parameter: at most 32,764. Larger tables go by address.
  int max_table_bytes = 32764;
};

// A trial sets members of `t`: -DADAMOD_TUNING="t.groups=2; t.block_threads=128".
#ifndef ADAMOD_TUNING
#define ADAMOD_TUNING
#endif

constexpr Tuning tuning = [] {
  Tuning t;
  ADAMOD_TUNING;
  return t;
}();

}  // namespace cuda_engine
