// Steps of rows whose states or weights are coded: which kernel serves which dtype and formats.
#include <stdexcept>

#include "../rules/all.h"
#include "cuda_blocks.h"
#include "cuda_coded.h"
#include "cuda_launch.h"

namespace cuda_engine {
namespace {

template <typename Weights, int bytes>
struct CodedKernels {
  using Format = typename Weights::Format;
  static constexpr bool is_coded = true;
  static constexpr int state_bytes = bytes;
  template <typename Rule, typename Table>
  static constexpr auto kernel() {
    return coded_step_kernel<Rule, Weights, bytes, Table>;
  }
};

template <typename Rule, typename Weights>
void step_of_states(const Batch& batch, int device, cudaStream_t stream) {
  if (batch.state_format == "8bit") {
    Step<Rule, CodedKernels<Weights, 1>>{batch, device, stream}.enqueue();
  } else if (batch.state_format == "16bit") {
    Step<Rule, CodedKernels<Weights, 2>>{batch, device, stream}.enqueue();
  } else if constexpr (!Weights::is_plain) {
    Step<Rule, CodedKernels<Weights, 4>>{batch, device, stream}.enqueue();
  }
}

void check_formats(const std::string& dtype, const Batch& batch) {
  const std::string& states = batch.state_format;
  const std::string& weights = batch.weight_format;
  if (states != "fp32" && states != "16bit" && states != "8bit") {
    throw std::invalid_argument("the CUDA engine has the state formats fp32, 16bit and 8bit, got " +
                                states);
  }
  if (weights != "plain" && weights != "split" && weights != "stochastic") {
    throw std::invalid_argument(
        "the CUDA engine has the weight formats plain, split and stochastic, got " + weights);
  }
  if (weights != "plain" && dtype != "bfloat16") {
    throw std::invalid_argument("the weight format " + weights +
                                " is one of bfloat16 parameters, got " + dtype);
  }
  if (batch.coded == nullptr) {
    throw std::invalid_argument("the formats " + states + " and " + weights +
                                " need coded rows, got none");
  }
}

}  // namespace

template <typename Rule>
void step_coded(const std::string& dtype, const Batch& batch, int device, cudaStream_t stream) {
  check_formats(dtype, batch);
  if (batch.weight_format == "split") return step_of_states<Rule, Split>(batch, device, stream);
  if (batch.weight_format == "stochastic") {
    return step_of_states<Rule, Stochastic>(batch, device, stream);
  }
  if (dtype == "float32") return step_of_states<Rule, Plain<Float32>>(batch, device, stream);
  if (dtype == "bfloat16") return step_of_states<Rule, Plain<BFloat16>>(batch, device, stream);
  if (dtype == "float16") return step_of_states<Rule, Plain<Float16>>(batch, device, stream);
  throw std::invalid_argument("the CUDA engine serves float32, bfloat16 and float16, got " + dtype);
}

#define INSTANTIATE(Rule) \
  template void step_coded<Rule<float>>(const std::string&, const Batch&, int, cudaStream_t);
FOR_EACH_RULE(INSTANTIATE)
#undef INSTANTIATE

}  // namespace cuda_engine
