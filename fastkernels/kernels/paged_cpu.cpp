// The paged KV cache on a CPU: what compiled steps call (see paged_cpu.py). Plain C ABI over PyTorch's C shim.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

struct View {  // a tensor's memory; the last axis is contiguous
  char* data;
  int64_t* sizes;
  int64_t* strides;
  int32_t dtype;
};

bool view_of(AtenTensorHandle tensor, int64_t last_axis, View& view) {
  void* data;
  if (aoti_torch_get_data_ptr(tensor, &data) || aoti_torch_get_sizes(tensor, &view.sizes) ||
      aoti_torch_get_strides(tensor, &view.strides) || aoti_torch_get_dtype(tensor, &view.dtype)) {
    return false;
  }
  view.data = static_cast<char*>(data);
  return view.sizes[last_axis] == 1 || view.strides[last_axis] == 1;
}

constexpr int LANES = 16;
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));

struct Float32 {
  using type = float;
  static float load(float x) { return x; }
  static float store(float x) { return x; }
  static Floats lanes(const float* x) {
    Floats y;
    std::memcpy(&y, x, sizeof y);
    return y;
  }
};

struct BFloat16 {
  using type = uint16_t;
  static float load(uint16_t x) {
    uint32_t bits = uint32_t(x) << 16;
    float y;
    std::memcpy(&y, &bits, 4);
    return y;
  }
  static uint16_t store(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if (x != x) return 0x7FC0;
    return uint16_t((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);  // to nearest, ties to even
  }
  static Floats lanes(const uint16_t* x) {
    Ints bits;
    for (int i = 0; i < LANES; ++i) bits[i] = int32_t(uint32_t(x[i]) << 16);
    return reinterpret_cast<Floats>(bits);
  }
};

inline Floats all(float x) { return x - Floats{}; }

// exp(x) for x <= 0, to about one unit in the last place; NaN stays.
inline Floats exp_nonpositive(Floats x) {
  x = x < all(-87.0f) ? all(-87.0f) : x;
  const Ints n = __builtin_convertvector(x * 1.44269504f - 0.5f, Ints);  // towards zero: to nearest, as x <= 0
  const Floats m = __builtin_convertvector(n, Floats);
  const Floats r = (x - m * 0.693359375f) + m * 2.12194440e-4f;
  Floats y = all(1.9875691500e-4f);
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  return y * reinterpret_cast<Floats>((n + 127) << 23);
}

inline float exp_nonpositive(float x) { return exp_nonpositive(all(x))[0]; }

// The folded halves of every group of 2 * WIDTH lanes, those of a before those of b.
template <int WIDTH>
inline Floats fold(Floats a, Floats b) {
  Ints low, high;
  for (int i = 0; i < LANES; ++i) {
    low[i] = i / WIDTH * 2 * WIDTH + i % WIDTH;  // of a and b in a row
    high[i] = low[i] + WIDTH;
  }
  return __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, high);
}

// Lane i: the sum of the lanes of x[i].
inline Floats sums(const Floats* x) {
  Floats a[8], b[4], c[2];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) a[i] = fold<8>(x[2 * i], x[2 * i + 1]);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) b[i] = fold<4>(a[2 * i], a[2 * i + 1]);
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) c[i] = fold<2>(b[2 * i], b[2 * i + 1]);
  return fold<1>(c[0], c[1]);
}

inline Floats swapped(Floats x, int distance) {
  Ints from;
  for (int i = 0; i < LANES; ++i) from[i] = i ^ distance;
  return __builtin_shuffle(x, from);
}

inline float largest_of(Floats x) {
#pragma GCC unroll 4
  for (int distance = LANES / 2; distance; distance /= 2) {
    const Floats y = swapped(x, distance);
    x = x > y ? x : y;
  }
  return x[0];
}

inline float sum_of(Floats x) {
#pragma GCC unroll 4
  for (int distance = LANES / 2; distance; distance /= 2) x += swapped(x, distance);
  return x[0];
}

constexpr int BLOCK = 2 * LANES;  // keys whose scores are held at once

struct Decode {
  View query, key, value, out;
  const int32_t* seq_lens;
  const int32_t* table;
  int64_t table_stride, num_heads, num_kv_heads, head_size, page_size;
  float scale;
};

// scores[j] = q . keys[j] for a block of keys
template <class T, int HEAD>
inline void dots(const float* q, const typename T::type* const* keys, int64_t head_size, Floats* scores) {
  if constexpr (HEAD > 0) {
    Floats own[HEAD / LANES], products[LANES];
    for (int n = 0; n < HEAD / LANES; ++n) own[n] = Float32::lanes(q + n * LANES);
    for (int first = 0; first < BLOCK; first += LANES) {
#pragma GCC unroll 16
      for (int j = 0; j < LANES; ++j) {
        products[j] = own[0] * T::lanes(keys[first + j]);
        for (int n = 1; n < HEAD / LANES; ++n) products[j] += own[n] * T::lanes(keys[first + j] + n * LANES);
      }
      scores[first / LANES] = sums(products);
    }
  } else {
    for (int j = 0; j < BLOCK; ++j) {
      float dot = 0;
      for (int64_t i = 0; i < head_size; ++i) dot += q[i] * T::load(keys[j][i]);
      scores[j / LANES][j % LANES] = dot;
    }
  }
}

// acc = acc * fade + sum of weights[j] * values[j]; small heads in several chains, which need not wait for another
template <class T, int HEAD>
inline void mix(float* acc, float fade, const typename T::type* const* values, const float* weights,
                int64_t head_size) {
  if constexpr (HEAD > 0) {
    constexpr int PARTS = HEAD / LANES, CHAINS = PARTS == 1 ? 4 : PARTS <= 4 ? 2 : 1;
    Floats mixed[CHAINS][PARTS] = {};
#pragma GCC unroll 8
    for (int n = 0; n < PARTS; ++n) mixed[0][n] = Float32::lanes(acc + n * LANES) * fade;
    for (int j = 0; j < BLOCK; j += CHAINS)
#pragma GCC unroll 4
      for (int c = 0; c < CHAINS; ++c)
#pragma GCC unroll 8
        for (int n = 0; n < PARTS; ++n) mixed[c][n] += weights[j + c] * T::lanes(values[j + c] + n * LANES);
#pragma GCC unroll 8
    for (int n = 0; n < PARTS; ++n) {
#pragma GCC unroll 4
      for (int c = 1; c < CHAINS; ++c) mixed[0][n] += mixed[c][n];
      std::memcpy(acc + n * LANES, &mixed[0][n], sizeof(Floats));
    }
  } else {
    for (int64_t i = 0; i < head_size; ++i) acc[i] *= fade;
    for (int j = 0; j < BLOCK; ++j)
      for (int64_t i = 0; i < head_size; ++i) acc[i] += weights[j] * T::load(values[j][i]);
  }
}

// One sequence's query heads that share one head of keys, block by block with a running softmax.
// HEAD: the head size when it is known to the compiler, else 0.
template <class T, int HEAD>
void decode_head(const Decode& d, int64_t seq, int64_t kv_head, float* scratch) {
  using Raw = typename T::type;
  const int64_t size = HEAD ? HEAD : d.head_size, group = d.num_heads / d.num_kv_heads;
  float* q = scratch;
  float* acc = q + group * size;
  float* sum = acc + group * size;
  float* most = sum + group;
  for (int64_t g = 0; g < group; ++g) {
    auto* row = reinterpret_cast<const Raw*>(d.query.data) + seq * d.query.strides[0] +
                (kv_head * group + g) * d.query.strides[1];
    for (int64_t i = 0; i < size; ++i) q[g * size + i] = T::load(row[i]) * d.scale;
    for (int64_t i = 0; i < size; ++i) acc[g * size + i] = 0;
    sum[g] = 0;
    most[g] = -3.0e38f;
  }
  const auto* keys = reinterpret_cast<const Raw*>(d.key.data) + kv_head * d.key.strides[2];
  const auto* values = reinterpret_cast<const Raw*>(d.value.data) + kv_head * d.value.strides[2];
  const int32_t* pages = d.table + seq * d.table_stride;
  const int64_t seq_len = d.seq_lens[seq];
  int64_t offset = 0;
  Ints index;
  for (int i = 0; i < LANES; ++i) index[i] = i;
  const Raw* k[BLOCK];
  const Raw* v[BLOCK];
  for (int64_t first = 0; first < seq_len; first += BLOCK) {
    const int count = int(std::min<int64_t>(BLOCK, seq_len - first));
    for (int j = 0; j < count; ++j) {
      k[j] = keys + *pages * d.key.strides[0] + offset * d.key.strides[1];
      v[j] = values + *pages * d.value.strides[0] + offset * d.value.strides[1];
      if (++offset == d.page_size) {
        offset = 0;
        ++pages;
      }
    }
    for (int j = count; j < BLOCK; ++j) k[j] = k[count - 1], v[j] = v[count - 1];  // without weight
    for (int64_t g = 0; g < group; ++g) {
      Floats s[2];
      dots<T, HEAD>(q + g * size, k, size, s);
      for (int half = 0; half < 2; ++half) s[half] = index < count - half * LANES ? s[half] : all(-3.0e38f);
      const float largest = std::max(most[g], largest_of(s[0] > s[1] ? s[0] : s[1]));
      const float fade = exp_nonpositive(most[g] - largest);
      for (int half = 0; half < 2; ++half)
        s[half] = index < count - half * LANES ? exp_nonpositive(s[half] - largest) : all(0.0f);
      sum[g] = sum[g] * fade + sum_of(s[0] + s[1]);
      most[g] = largest;
      float weights[BLOCK];
      std::memcpy(weights, s, sizeof weights);
      mix<T, HEAD>(acc + g * size, fade, v, weights, size);
    }
  }
  for (int64_t g = 0; g < group; ++g) {
    auto* row = reinterpret_cast<Raw*>(d.out.data) + (seq * d.num_heads + kv_head * group + g) * size;
    const float scale = seq_len > 0 ? 1.0f / sum[g] : 0.0f;
    for (int64_t i = 0; i < size; ++i) row[i] = T::store(acc[g * size + i] * scale);
  }
}

template <class T, int HEAD>
void decode_range(int64_t begin, int64_t end, void* context) {
  const Decode& d = *static_cast<const Decode*>(context);
  std::vector<float> scratch((d.num_heads / d.num_kv_heads) * (2 * d.head_size + 2));
  for (int64_t i = begin; i < end; ++i)
    decode_head<T, HEAD>(d, i / d.num_kv_heads, i % d.num_kv_heads, scratch.data());
}

template <class T>
ParallelFunc decode_of(int64_t head_size) {
  switch (head_size) {
    case 16: return decode_range<T, 16>;
    case 32: return decode_range<T, 32>;
    case 64: return decode_range<T, 64>;
    case 80: return decode_range<T, 80>;
    case 96: return decode_range<T, 96>;
    case 128: return decode_range<T, 128>;
    default: return decode_range<T, 0>;
  }
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default"))) AOTITorchError

EXPORT aoti_torch_cpu_store_paged_kv(AtenTensorHandle key, AtenTensorHandle value, AtenTensorHandle key_cache,
                                     AtenTensorHandle value_cache, AtenTensorHandle slot_mapping, void*) {
  View from[2], to[2], slots;
  if (!view_of(key, 2, from[0]) || !view_of(value, 2, from[1]) || !view_of(key_cache, 3, to[0]) ||
      !view_of(value_cache, 3, to[1]) || !view_of(slot_mapping, 0, slots)) {
    return AOTI_TORCH_FAILURE;
  }
  const int64_t width = from[0].dtype == aoti_torch_dtype_float32() ? 4 : 2;
  const auto* slot = reinterpret_cast<const int64_t*>(slots.data);
  const int64_t page_size = to[0].sizes[1], num_heads = from[0].sizes[1], num_bytes = from[0].sizes[2] * width;
  for (int64_t token = 0; token < slots.sizes[0]; ++token) {
    if (slot[token] < 0) continue;
    const int64_t page = slot[token] / page_size, offset = slot[token] % page_size;
    for (int which = 0; which < 2; ++which) {
      const View &f = from[which], &t = to[which];
      const char* source = f.data + token * f.strides[0] * width;
      char* target = t.data + (page * t.strides[0] + offset * t.strides[1]) * width;
      for (int64_t head = 0; head < num_heads; ++head)
        std::memcpy(target + head * t.strides[2] * width, source + head * f.strides[1] * width, num_bytes);
    }
  }
  return AOTI_TORCH_SUCCESS;
}

EXPORT aoti_torch_cpu_decode_paged_kv(AtenTensorHandle query, AtenTensorHandle key_cache,
                                      AtenTensorHandle value_cache, AtenTensorHandle seq_lens,
                                      AtenTensorHandle block_table, double scale, AtenTensorHandle* out) {
  Decode d;
  View lens, table;
  if (!view_of(query, 2, d.query) || !view_of(key_cache, 3, d.key) || !view_of(value_cache, 3, d.value) ||
      !view_of(seq_lens, 0, lens) || !view_of(block_table, 1, table)) {
    return AOTI_TORCH_FAILURE;
  }
  const int64_t* sizes = d.query.sizes;
  const int64_t strides[3] = {sizes[1] * sizes[2], sizes[2], 1};
  if (aoti_torch_empty_strided(3, sizes, strides, d.query.dtype, aoti_torch_device_type_cpu(), 0, out)) {
    return AOTI_TORCH_FAILURE;
  }
  if (!view_of(*out, 2, d.out)) return AOTI_TORCH_FAILURE;
  d.seq_lens = reinterpret_cast<const int32_t*>(lens.data);
  d.table = reinterpret_cast<const int32_t*>(table.data);
  d.table_stride = table.strides[0];
  d.num_heads = sizes[1];
  d.num_kv_heads = d.key.sizes[2];
  d.head_size = sizes[2];
  d.page_size = d.key.sizes[1];
  d.scale = float(scale);
  ParallelFunc run;
  if (d.query.dtype == aoti_torch_dtype_float32()) {
    run = decode_of<Float32>(d.head_size);
  } else if (d.query.dtype == aoti_torch_dtype_bfloat16()) {
    run = decode_of<BFloat16>(d.head_size);
  } else {
    return AOTI_TORCH_FAILURE;
  }
  return torch_parallel_for(0, sizes[0] * d.num_kv_heads, 16, run, &d);
}

// x @ weight.T (+ bias) in float32 for few rows: LANES rows of x side by side, so that weights are read once and in
// order, and no sum runs across lanes.
namespace {

constexpr int COLUMNS = 8;  // of the output at once: with two vectors of rows, sixteen sums in registers

struct Linear {
  const float* rows;  // [groups of 2 * LANES rows, input size, 2 * LANES]: transposed, 0 where there are fewer
  const float* weight;
  const float* bias;
  float* out;
  int64_t num_rows, input_size, output_size;
};

inline void transpose(Floats* x) {
#pragma GCC unroll 4
  for (int d = LANES / 2; d; d /= 2) {
    Ints low, high;
    for (int i = 0; i < LANES; ++i) {
      low[i] = i & d ? LANES + i - d : i;
      high[i] = i & d ? LANES + i : i + d;
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) {
      if (i & d) continue;
      const Floats a = x[i], b = x[i | d];
      x[i] = __builtin_shuffle(a, b, low);
      x[i | d] = __builtin_shuffle(a, b, high);
    }
  }
}

void linear_block(const Linear& l, int64_t group, int64_t block) {
  const int64_t size = l.input_size, first = block * LANES, first_row = group * 2 * LANES;
  const float* rows = l.rows + group * size * 2 * LANES;
  Floats sums[2][LANES];
  for (int part = 0; part < LANES; part += COLUMNS) {
    const float* w[COLUMNS];
    Floats acc[COLUMNS][2];
#pragma GCC unroll 8
    for (int j = 0; j < COLUMNS; ++j) {
      const int64_t column = std::min(first + part + j, l.output_size - 1);
      w[j] = l.weight + column * size;
      acc[j][0] = acc[j][1] = all(l.bias ? l.bias[column] : 0.0f);
    }
    for (int64_t k = 0; k < size; ++k) {
      const Floats x0 = Float32::lanes(rows + k * 2 * LANES), x1 = Float32::lanes(rows + (k * 2 + 1) * LANES);
#pragma GCC unroll 8
      for (int j = 0; j < COLUMNS; ++j) {
        acc[j][0] += x0 * w[j][k];
        acc[j][1] += x1 * w[j][k];
      }
    }
#pragma GCC unroll 8
    for (int j = 0; j < COLUMNS; ++j) sums[0][part + j] = acc[j][0], sums[1][part + j] = acc[j][1];
  }
  const int64_t width = std::min<int64_t>(LANES, l.output_size - first);
  for (int half = 0; half < 2; ++half) {
    transpose(sums[half]);
    const int64_t from = first_row + half * LANES, count = std::min<int64_t>(LANES, l.num_rows - from);
    for (int64_t row = 0; row < count; ++row)
      std::memcpy(l.out + (from + row) * l.output_size + first, &sums[half][row], 4 * width);
  }
}

void linear_range(int64_t begin, int64_t end, void* context) {
  const Linear& l = *static_cast<const Linear*>(context);
  for (int64_t block = begin; block < end; ++block)
    for (int64_t group = 0; group * 2 * LANES < l.num_rows; ++group) linear_block(l, group, block);
}

// Rows as Linear wants them.
void pack(const View& x, std::vector<float>& packed) {
  const int64_t num_rows = x.sizes[0], size = x.sizes[1], num_groups = (num_rows + 2 * LANES - 1) / (2 * LANES);
  packed.resize(num_groups * size * 2 * LANES);
  for (int64_t part = 0; part < 2 * num_groups; ++part) {
    const int64_t first = part * LANES, count = std::min<int64_t>(LANES, num_rows - first);
    float* target = packed.data() + part / 2 * size * 2 * LANES + part % 2 * LANES;
    for (int64_t k = 0; k < size; k += LANES) {
      const int64_t width = std::min<int64_t>(LANES, size - k);
      Floats tile[LANES] = {};
      for (int64_t i = 0; i < count; ++i)
        std::memcpy(&tile[i], reinterpret_cast<const float*>(x.data) + (first + i) * x.strides[0] + k, 4 * width);
      transpose(tile);
      for (int64_t i = 0; i < width; ++i) std::memcpy(target + (k + i) * 2 * LANES, &tile[i], sizeof(Floats));
    }
  }
}

}  // namespace

EXPORT aoti_torch_cpu_linear_few_rows(AtenTensorHandle x, AtenTensorHandle weight, AtenTensorHandle* bias,
                                      AtenTensorHandle* out) {
  View rows, matrix, added, result;
  if (!view_of(x, 1, rows) || !view_of(weight, 1, matrix) || (bias && !view_of(*bias, 0, added))) {
    return AOTI_TORCH_FAILURE;
  }
  const int64_t sizes[2] = {rows.sizes[0], matrix.sizes[0]}, strides[2] = {sizes[1], 1};
  if (aoti_torch_empty_strided(2, sizes, strides, rows.dtype, aoti_torch_device_type_cpu(), 0, out) ||
      !view_of(*out, 1, result)) {
    return AOTI_TORCH_FAILURE;
  }
  static thread_local std::vector<float> packed;
  pack(rows, packed);
  Linear l{packed.data(), reinterpret_cast<const float*>(matrix.data),
           bias ? reinterpret_cast<const float*>(added.data) : nullptr, reinterpret_cast<float*>(result.data),
           sizes[0], rows.sizes[1], sizes[1]};
  const int64_t grain = std::max<int64_t>(1, (1 << 18) / (l.input_size * 2 * LANES * LANES));
  return torch_parallel_for(0, (l.output_size + LANES - 1) / LANES, grain, linear_range, &l);
}

// Runs a compiled step. inputs are borrowed: the step takes new handles of the same tensors.
using Run = AOTITorchError (*)(void*, AtenTensorHandle*, size_t, AtenTensorHandle*, size_t, void*, void*);
EXPORT fastkernels_run_step(Run run, void* container, const AtenTensorHandle* inputs, size_t num_inputs,
                            AtenTensorHandle* outputs, size_t num_outputs) {
  static thread_local std::vector<AtenTensorHandle> taken;
  taken.resize(num_inputs);
  for (size_t i = 0; i < num_inputs; ++i)
    if (aoti_torch_new_tensor_handle(inputs[i], &taken[i])) return AOTI_TORCH_FAILURE;
  return run(container, taken.data(), num_inputs, outputs, num_outputs, nullptr, nullptr);
}
