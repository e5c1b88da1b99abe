#include "kernels/expert_ffn.h"

#include <algorithm>
#include <cstdint>
#include <string>

#include "core/error.h"
#include "kernels/activation.h"
#include "kernels/kernel_set.h"

namespace prophet {
namespace {

// Below this much work (bytes of weights, times passes over them) the caller is done before
// another thread could start.
constexpr std::size_t kSerialWork = 512 << 10;
// Work of one task: small enough to balance and to stay in a second-level cache for the next block
// of tokens, large enough that claiming it costs nothing.
constexpr std::size_t kTaskWork = 128 << 10;
// Floats of a cache line: results of one task fill whole lines, and vectors of inputs start on one,
// since loads across two lines halve the speed of several tokens.
constexpr std::size_t kLine = 16;
constexpr std::size_t kTaskRows = kLine;

std::size_t whole_lines(std::size_t floats) { return (floats + kLine - 1) / kLine * kLine; }

// The first line boundary at or after p.
float* line_start(float* p) {
  const auto address = reinterpret_cast<std::uintptr_t>(p);
  return p + (whole_lines(address / sizeof(float)) - address / sizeof(float));
}

bool starts_line(const float* p) {
  return reinterpret_cast<std::uintptr_t>(p) % (kLine * sizeof(float)) == 0;
}

void require(bool good, const char* what, std::size_t job) {
  if (good) return;
  throw InvalidArgument("expert_ffn: job " + std::to_string(job) + " has " + what);
}

void check(const FfnShape& shape, std::span<const FfnJob> jobs, const float* x) {
  if (shape.hidden < 1 || shape.inter < 1) {
    throw InvalidArgument("expert_ffn: hidden size " + std::to_string(shape.hidden) +
                          " and intermediate size " + std::to_string(shape.inter) +
                          " must both be at least 1");
  }
  if (x == nullptr) throw InvalidArgument("expert_ffn: x is null; pass [rows, hidden] floats");
  for (std::size_t j = 0; j < jobs.size(); ++j) {
    const FfnJob& job = jobs[j];
    require(job.tokens >= 1, "no tokens; leave it out", j);
    require(job.up != nullptr && job.down != nullptr, "no up or no down matrix; pass both", j);
    require(!shape.has_gate || job.gate != nullptr, "no gate matrix; pass it or clear has_gate", j);
    require(job.rows != nullptr && job.outputs != nullptr,
            "no rows or no outputs; pass one of each per token", j);
  }
}

// One expert_ffn call: two phases, each a list of tasks over all jobs. A task is a block of rows of
// the matrices of one job, for all tokens of that job.
class Call {
 public:
  Call(const FfnShape& shape, std::span<const FfnJob> jobs, const float* x, FfnScratch& scratch)
      : kernels_(kernel_set()),
        dot_(dot_for(shape.weights)),
        shape_(shape),
        jobs_(jobs),
        x_(x),
        hidden_(static_cast<std::size_t>(shape.hidden)),
        inter_(static_cast<std::size_t>(shape.inter)),
        hidden_stride_(whole_lines(hidden_)),
        inter_stride_(whole_lines(inter_)) {
    // Prefix sums over jobs: tokens, tasks of the first phase, tasks of the second.
    const std::size_t n = jobs.size() + 1;
    if (scratch.starts.size() < 3 * n) scratch.starts.resize(3 * n);
    tokens_ = {scratch.starts.data(), n};
    up_tasks_ = {scratch.starts.data() + n, n};
    down_tasks_ = {scratch.starts.data() + 2 * n, n};
    tokens_[0] = up_tasks_[0] = down_tasks_[0] = 0;
    for (std::size_t j = 0; j < jobs.size(); ++j) {
      tokens_[j + 1] = tokens_[j] + jobs[j].tokens;
      up_tasks_[j + 1] = up_tasks_[j] + tasks(inter_, up_rows(jobs[j]));
      down_tasks_[j + 1] = down_tasks_[j] + tasks(hidden_, down_rows(jobs[j]));
      work_ += inter_ * up_row_work(jobs[j]) + hidden_ * down_row_work(jobs[j]);
    }
    lay_out(scratch.activations);
  }

  std::size_t work() const { return work_; }
  int up_count() const { return up_tasks_.back(); }
  int down_count() const { return down_tasks_.back(); }

  void up_task(int task) const {
    const std::size_t j = owner(up_tasks_, task);
    const FfnJob& job = jobs_[j];
    const std::size_t step = up_rows(job);
    const std::size_t first = static_cast<std::size_t>(task - up_tasks_[j]) * step;
    const std::size_t rows = std::min(step, inter_ - first);
    const auto input = [&](int t) { return input_row(j, t); };
    const auto up = [&](int t) { return up_ + activation_at(j, t) + first; };
    const auto gate = [&](int t) { return gate_ + activation_at(j, t) + first; };
    if (shape_.has_gate) multiply(job.gate, hidden_, first, rows, job.tokens, input, gate);
    multiply(job.up, hidden_, first, rows, job.tokens, input, up);
    for (int t = 0; t < job.tokens; ++t) {
      activate(shape_.activation, shape_.has_gate ? gate(t) : nullptr, up(t), rows);
    }
  }

  void down_task(int task) const {
    const std::size_t j = owner(down_tasks_, task);
    const FfnJob& job = jobs_[j];
    const std::size_t step = down_rows(job);
    const std::size_t first = static_cast<std::size_t>(task - down_tasks_[j]) * step;
    const std::size_t rows = std::min(step, hidden_ - first);
    const auto input = [&](int t) { return up_ + activation_at(j, t); };
    const auto output = [&](int t) { return job.outputs[t] + first; };
    multiply(job.down, inter_, first, rows, job.tokens, input, output);
  }

 private:
  using Dot = void (*)(const DotRows&);

  Dot dot_for(DType type) const {
    switch (type) {
      case DType::f32:
        return kernels_.dot_f32;
      case DType::f16:
        return kernels_.dot_f16;
      case DType::bf16:
        break;
    }
    return kernels_.dot_bf16;
  }

  std::size_t passes(const FfnJob& job) const {
    return static_cast<std::size_t>((job.tokens - 1) / kernels_.token_block) + 1;
  }
  std::size_t up_row_work(const FfnJob& job) const {
    return hidden_ * size_of(shape_.weights) * (shape_.has_gate ? 2 : 1) * passes(job);
  }
  std::size_t down_row_work(const FfnJob& job) const {
    return inter_ * size_of(shape_.weights) * passes(job);
  }
  static std::size_t rows_of_work(std::size_t row_work) {
    const std::size_t rows = kTaskWork / row_work;
    return std::max(kTaskRows, rows / kTaskRows * kTaskRows);
  }
  std::size_t up_rows(const FfnJob& job) const { return rows_of_work(up_row_work(job)); }
  std::size_t down_rows(const FfnJob& job) const { return rows_of_work(down_row_work(job)); }
  static int tasks(std::size_t rows, std::size_t step) {
    return static_cast<int>((rows + step - 1) / step);
  }

  static std::size_t owner(std::span<const std::int32_t> starts, int task) {
    const auto after = std::upper_bound(starts.begin(), starts.end(), task);
    return static_cast<std::size_t>(after - starts.begin()) - 1;
  }

  std::size_t activation_at(std::size_t job, int token) const {
    return static_cast<std::size_t>(tokens_[job] + token) * inter_stride_;
  }
  const float* input_row(std::size_t job, int token) const {
    if (gathered_ == nullptr)
      return x_ + static_cast<std::size_t>(jobs_[job].rows[token]) * hidden_;
    return gathered_ + static_cast<std::size_t>(tokens_[job] + token) * hidden_stride_;
  }

  // [tokens, I] of up, the same of gate, and where rows of x do not start on lines, [tokens, H] of
  // them. The activation makes up the input of down.
  void lay_out(std::vector<float>& memory) {
    const std::size_t tokens = static_cast<std::size_t>(tokens_.back());
    const std::size_t values = tokens * inter_stride_;
    const bool gather = !starts_line(x_) || hidden_ != hidden_stride_;
    const std::size_t needed =
        kLine + (shape_.has_gate ? 2 : 1) * values + (gather ? tokens * hidden_stride_ : 0);
    if (memory.size() < needed) memory.resize(needed);
    up_ = line_start(memory.data());
    gate_ = shape_.has_gate ? up_ + values : nullptr;
    if (!gather) return;
    gathered_ = (shape_.has_gate ? gate_ : up_) + values;
    float* to = gathered_;
    for (const FfnJob& job : jobs_) {
      for (int t = 0; t < job.tokens; ++t, to += hidden_stride_) {
        std::copy_n(x_ + static_cast<std::size_t>(job.rows[t]) * hidden_, hidden_, to);
      }
    }
  }

  // output(t)[r] = matrix[first + r] · input(t) for r < rows, t < tokens.
  template <class Input, class Output>
  void multiply(const std::byte* matrix, std::size_t columns, std::size_t first, std::size_t rows,
                int tokens, Input input, Output output) const {
    const float* inputs[kMaxTokenBlock];
    float* outputs[kMaxTokenBlock];
    DotRows call{.rows = matrix + first * columns * size_of(shape_.weights),
                 .row_count = rows,
                 .columns = columns,
                 .inputs = inputs,
                 .outputs = outputs};
    for (int begin = 0; begin < tokens; begin += kernels_.token_block) {
      call.tokens = std::min(kernels_.token_block, tokens - begin);
      for (int t = 0; t < call.tokens; ++t) {
        inputs[t] = input(begin + t);
        outputs[t] = output(begin + t);
      }
      dot_(call);
    }
  }

  const KernelSet& kernels_;
  const Dot dot_;
  const FfnShape& shape_;
  const std::span<const FfnJob> jobs_;
  const float* const x_;
  const std::size_t hidden_;
  const std::size_t inter_;
  const std::size_t hidden_stride_;
  const std::size_t inter_stride_;
  std::span<std::int32_t> tokens_;
  std::span<std::int32_t> up_tasks_;
  std::span<std::int32_t> down_tasks_;
  float* up_ = nullptr;
  float* gate_ = nullptr;
  float* gathered_ = nullptr;
  std::size_t work_ = 0;
};

}  // namespace

void expert_ffn(const FfnShape& shape, std::span<const FfnJob> jobs, const float* x,
                FfnScratch& scratch, WorkerPool& pool) {
  if (jobs.empty()) return;
  check(shape, jobs, x);
  const Call call(shape, jobs, x, scratch);
  if (call.work() <= kSerialWork) {
    for (int task = 0; task < call.up_count(); ++task) call.up_task(task);
    for (int task = 0; task < call.down_count(); ++task) call.down_task(task);
    return;
  }
  pool.run(call.up_count(), [&call](int task) { call.up_task(task); });
  pool.run(call.down_count(), [&call](int task) { call.down_task(task); });
}

}  // namespace prophet
