// SKA with 3x3 taps on the CPU, forward and both gradients in one pass; forward also with the norms of LS convolution.
//
// Needs only a C++17 compiler that knows GCC's vector types; with OpenMP it runs on several threads.
//
// Work is cut into tiles of a few rows, which are packed so that every tap is one offset for all pixels: between rows
// of zeros where the map ends, and so that no tap leads over the end of a row. Packing also converts to the type of the
// sums, takes weights of any strides, and fills vectors up. Two small loops over vectors then do all arithmetic, for
// both memory layouts: vectors run along the pixels of one weight channel where channels come first in memory, along
// the J weight channels of one pixel where they come last. The C / J channels that share weights are called groups.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

namespace {

constexpr int64_t kTaps = 9;
constexpr int64_t kTileElements = 16 * 1024;  // of x; the buffers of a tile then fit the second-level cache

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

struct BFloat16 {
  uint16_t bits;
  BFloat16() = default;
  explicit BFloat16(float value) {
    uint32_t word;
    std::memcpy(&word, &value, 4);
    // To the nearest, ties to even; NaN stays NaN.
    bits = value != value ? 0x7fc0 : (word + 0x7fff + ((word >> 16) & 1)) >> 16;
  }
  explicit operator float() const {
    uint32_t word = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &word, 4);
    return value;
  }
};

// Aligned like one element: vectors start anywhere.
template <typename A>
struct Simd {
  typedef A Vector __attribute__((vector_size(kVectorBytes), aligned(sizeof(A)), may_alias));
  static constexpr int64_t width = kVectorBytes / sizeof(A);
  static int64_t round_up(int64_t n) { return (n + width - 1) / width * width; }
  typedef std::conditional_t<sizeof(A) == 4, int32_t, int64_t> Bits;
  typedef Bits Mask __attribute__((vector_size(kVectorBytes), aligned(sizeof(A)), may_alias));
  static Vector masked(const Vector& v, const Bits* mask) {
    return reinterpret_cast<Vector>(reinterpret_cast<Mask>(v) & *reinterpret_cast<const Mask*>(mask));
  }
  template <typename T>
  static Vector read(const T* p) {
    if constexpr (std::is_same_v<T, A>) return at(p);
    Vector values;
    for (int64_t i = 0; i < width; ++i) values[i] = A(p[i]);
    return values;
  }
  static Vector& at(A* p) { return *reinterpret_cast<Vector*>(p); }
  static const Vector& at(const A* p) { return *reinterpret_cast<const Vector*>(p); }
};

struct Offsets {
  int64_t of[kTaps];
};

// Where pixels have a neighbour at the left and at the right: ones, elsewhere zeros.
template <typename A>
struct Sides {
  std::vector<typename Simd<A>::Bits> left, right;
  Sides(int64_t rows, int64_t width)
      : left(rows * width + Simd<A>::width, ~typename Simd<A>::Bits(0)), right(left) {
    for (int64_t y = 0; y < rows; ++y) left[y * width] = right[(y + 1) * width - 1] = 0;
  }
  // Of a vector of tap k, which starts at pixel i, nothing stays where there is no neighbour.
  typename Simd<A>::Vector only_inside(int k, int64_t i, const typename Simd<A>::Vector& v) const {
    return k % 3 == 1 ? v : Simd<A>::masked(v, (k % 3 ? right : left).data() + i);
  }
};

// What is done to weights before, and to sums after.
template <typename A>
struct Plain {
  typedef typename Simd<A>::Vector Vector;
  Vector weight(int, int64_t, const Vector& w) const { return w; }
  Vector sum(int64_t, int64_t, const Vector& sum, const Vector&) const { return sum; }
};

// Weights are scaled and shifted by tap, sums by group, then x is added. Lanes have factors of their own, or all one.
template <typename A, bool OfLanes>
struct Normed {
  typedef typename Simd<A>::Vector Vector;
  const A *w_scale, *w_shift, *scale, *shift;
  int64_t step;  // between taps, and between groups
  static Vector load(const A* p, int64_t i) {
    if constexpr (OfLanes) return Simd<A>::at(p + i);
    return *p - Vector{};  // which is *p, also of -0
  }
  Vector weight(int k, int64_t i, const Vector& w) const {
    return w * load(w_scale + k * step, i) + load(w_shift + k * step, i);
  }
  Vector sum(int64_t g, int64_t i, const Vector& sum, const Vector& x) const {
    return x + (sum * load(scale + g * step, i) + load(shift + g * step, i));
  }
};

// out[g][i] = sum over taps k of x[g][x_taps[k] + i] * w[w_taps[k] + i]
// The last vector ends with the last lane where there are enough of them; fewer need memory for a whole vector.
template <typename A, typename Norms = Plain<A>>
inline void sum_taps(int64_t lanes, int64_t groups, int64_t x_step, const A* x, const Offsets& x_taps, const A* w,
                     const Offsets& w_taps, int64_t out_step, A* out, const Sides<A>* sides = nullptr,
                     const Norms& norms = {}) {
  using S = Simd<A>;
  for (int64_t next = 0; next < lanes; next += S::width) {
    const int64_t i = std::max<int64_t>(std::min(next, lanes - S::width), 0);
    typename S::Vector weight[kTaps];
    for (int k = 0; k < kTaps; ++k) {
      weight[k] = norms.weight(k, i, S::at(w + w_taps.of[k] + i));
      if (sides) weight[k] = sides->only_inside(k, i, weight[k]);
    }
    for (int64_t g = 0; g < groups; ++g) {
      const A* here = x + g * x_step + i;
      typename S::Vector sum = S::at(here + x_taps.of[0]) * weight[0];
      for (int k = 1; k < kTaps; ++k) sum += S::at(here + x_taps.of[k]) * weight[k];
      S::at(out + g * out_step + i) = norms.sum(g, i, sum, S::at(here + x_taps.of[kTaps / 2]));
    }
  }
}

// gw[k][i] = sum over groups g of x[g][x_taps[k] + i] * grad[g][i]
template <typename A>
inline void sum_groups(int64_t lanes, int64_t groups, int64_t group_step, const A* x, const Offsets& x_taps,
                       const A* grad, int64_t tap_step, A* gw, const Sides<A>* sides = nullptr) {
  using S = Simd<A>;
  for (int64_t next = 0; next < lanes; next += S::width) {
    const int64_t i = std::max<int64_t>(std::min(next, lanes - S::width), 0);
    typename S::Vector sum[kTaps] = {};
    for (int64_t g = 0; g < groups; ++g) {
      const A* here = x + g * group_step + i;
      const typename S::Vector factor = S::at(grad + g * group_step + i);
      for (int k = 0; k < kTaps; ++k) sum[k] += S::at(here + x_taps.of[k]) * factor;
    }
    for (int k = 0; k < kTaps; ++k) S::at(gw + k * tap_step + i) = sides ? sides->only_inside(k, i, sum[k]) : sum[k];
  }
}

// Always inlined, for the loops whose length the caller knows.
template <typename From, typename To>
__attribute__((always_inline)) inline void copy(int64_t n, const From* from, int64_t from_step, To* to,
                                                int64_t to_step) {
  if (from_step == 1 && to_step == 1) {
    if constexpr (std::is_same_v<From, To>)
      std::memcpy(to, from, n * sizeof(To));  // rows are short: this is twice as fast as the loop
    else
      for (int64_t i = 0; i < n; ++i) to[i] = static_cast<To>(from[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) to[i * to_step] = static_cast<To>(from[i * from_step]);
  }
}

// A tensor in memory; strides are in elements. "Part" is the group of a channel, or the tap of a weight.
template <typename T>
struct View {
  T* data;
  int64_t parts, image, part, j, row, column;
};

template <typename A>
struct GroupNorm {
  const A *weight, *bias;  // (J, taps)
  double eps;
};

template <typename A>
struct BatchNorm {
  const A *weight, *bias, *mean, *variance;
  double eps;
};

// The memory of a packed tile, in elements.
struct Packed {
  int64_t pixel, part;
};

template <typename T, typename A>
class Ska {
 public:
  Ska(bool channels_last, const int64_t* sizes)
      : channels_last(channels_last), batch(sizes[0]), j(sizes[2]), height(sizes[3]), width(sizes[4]) {
    groups = sizes[1] / j;
    const int64_t row = width * groups * (channels_last ? j : 1);  // in elements
    rows = std::clamp<int64_t>(kTileElements / std::max<int64_t>(row, 1), 1, std::max<int64_t>(height, 1));
    bands = (height + rows - 1) / rows;
    pitch = width + channels_last;
    lanes = Simd<A>::round_up(channels_last ? j : rows * pitch);
    // What vectors of the last pixels reach.
    pixels = 2 * pitch + 2 + Simd<A>::round_up(rows * pitch);
    maps = channels_last ? Packed{groups * lanes, lanes} : Packed{1, pixels};
    weights = channels_last ? Packed{kTaps * lanes, lanes} : Packed{1, pixels};
    for (int k = 0; k < kTaps; ++k) {
      const int64_t there = k / 3 * pitch + k % 3, back = (2 - k / 3) * pitch + 2 - k % 3;
      taps.of[k] = there * maps.pixel;
      taps_back.of[k] = back * maps.pixel;
      own_weight.of[k] = k * weights.part;
      weight_back.of[k] = k * weights.part + back * weights.pixel;
    }
  }

  View<T> map(void* memory) const {
    T* data = static_cast<T*>(memory);
    const int64_t c = groups * j, plane = height * width;
    if (channels_last) return {data, groups, plane * c, j, 1, width * c, c};
    return {data, groups, plane * c, plane * j, plane, width, 1};
  }

  View<T> weight(void* memory, const int64_t* strides) const {
    return {static_cast<T*>(memory), kTaps, strides[0], strides[2], strides[1], strides[3], strides[4]};
  }

  void forward(View<T> x, View<T> w, View<T> out, int threads) const {
    sum_tiles(x, w, out, threads, [](const Tile&) { return Plain<A>(); });
  }

  // The same with what LS convolution has around it: weights are normalised over the pixels and taps of a weight
  // channel, sums by the statistics of their channel, and x is added.
  void forward_normed(View<T> x, View<T> w, View<T> out, const GroupNorm<A>& group_norm, const BatchNorm<A>& batch_norm,
                      int threads) const {
    const int64_t step = Simd<A>::round_up(j), of_image = kTaps * step;
    std::vector<A> w_scale(batch * of_image), w_shift(batch * of_image), scale(groups * step), shift(groups * step);
    for (int64_t c = 0; c < groups * j; ++c) {
      const double factor = batch_norm.weight[c] / std::sqrt(double(batch_norm.variance[c]) + batch_norm.eps);
      scale[c / j * step + c % j] = A(factor);
      shift[c / j * step + c % j] = A(batch_norm.bias[c] - batch_norm.mean[c] * factor);
    }
    const int64_t block = channels_last ? Simd<A>::width : 1, blocks = (j + block - 1) / block;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < batch * blocks; ++i) {
      const int64_t image = i / blocks, first = i % blocks * block;
      const Moments moments = moments_of(w, image, first, std::min(block, j - first), group_norm.eps);
      for (int64_t k = 0; k < kTaps; ++k)
        for (size_t n = 0; n < moments.mean.size(); ++n) {
          const int64_t channel = first + n, there = image * of_image + k * step + channel;
          const double factor = group_norm.weight[channel * kTaps + k] * moments.inverse_deviation[n];
          w_scale[there] = A(factor);
          w_shift[there] = A(group_norm.bias[channel * kTaps + k] - moments.mean[n] * factor);
        }
    }
    const auto norms = [&](const Tile& tile, auto of_lanes) {
      const int64_t start = tile.image * of_image + tile.channel;
      return Normed<A, decltype(of_lanes)::value>{w_scale.data() + start, w_shift.data() + start,
                                                  scale.data() + tile.channel, shift.data() + tile.channel, step};
    };
    if (channels_last)
      sum_tiles(x, w, out, threads, [&](const Tile& tile) { return norms(tile, std::true_type()); });
    else
      sum_tiles(x, w, out, threads, [&](const Tile& tile) { return norms(tile, std::false_type()); });
  }

  void backward(View<T> grad, View<T> x, View<T> w, View<T> gx, View<T> gw, int threads) const {
    if constexpr (std::is_same_v<T, A>)
      if (!channels_last && is_like_packed(gw)) return backward_in_place(grad, x, w, gx, gw, threads);
    const int64_t inputs = 2 * map_size() + weight_size();
    for_tiles(threads, inputs, map_size() + weight_size(), [&](const Tile& tile, A* buffer) {
      A *in = buffer, *out_grad = in + map_size(), *weight = out_grad + map_size();
      A *x_grad = buffer + inputs, *w_grad = x_grad + map_size();
      pack(tile, 1, x, in, maps);
      pack(tile, 1, grad, out_grad, maps);
      pack(tile, 1, w, weight, weights);
      zero_sideways(tile, 1, weight);
      const A* centre = out_grad + (pitch + 1) * maps.pixel;
      for_vectors(tile, [&](int64_t pixel, int64_t n) {
        sum_taps(n, groups, maps.part, out_grad + pixel * maps.pixel, taps_back, weight + pixel * weights.pixel,
                 weight_back, maps.part, x_grad + pixel * maps.pixel);
        sum_groups(n, groups, maps.part, in + pixel * maps.pixel, taps, centre + pixel * maps.pixel, weights.part,
                   w_grad + pixel * weights.pixel);
      });
      unpack(tile, gx, x_grad, maps);
      zero_sideways(tile, 0, w_grad);
      unpack(tile, gw, w_grad, weights);
    });
  }

 private:
  struct Tile {
    int64_t image, channel, top, bottom;
  };

  // Whether packing would change no order, nor leave less than a vector of a tile. It is done then only for what needs
  // zeros around a tile; the rest is read and written where it is.
  bool is_like_packed(const View<T>& view) const {
    if (channels_last) return view.j == 1 && j >= Simd<A>::width;
    return view.column == 1 && view.row == width && height / bands * width >= Simd<A>::width;
  }

  template <typename NormsOf>
  void sum_tiles(View<T> x, View<T> w, View<T> out, int threads, const NormsOf& norms_of) const {
    const Sides<A> sides(channels_last ? 0 : rows, width);
    if constexpr (std::is_same_v<T, A>)
      if (is_like_packed(w)) return sum_tiles_in_place(x, w, out, threads, sides, norms_of);
    const int64_t inputs = map_size() + weight_size();
    for_tiles(threads, inputs, map_size(), [&](const Tile& tile, A* buffer) {
      A *in = buffer, *weight = in + map_size(), *sum = buffer + inputs;
      pack(tile, 1, x, in, maps);
      pack(tile, 0, w, weight, weights);
      const auto norms = norms_of(tile);
      for_vectors(tile, [&](int64_t pixel, int64_t n) {
        sum_taps(n, groups, maps.part, in + pixel * maps.pixel, taps, weight + pixel * weights.pixel, own_weight,
                 maps.part, sum + pixel * maps.pixel, channels_last ? nullptr : &sides, norms);
      });
      unpack(tile, out, sum, maps);
    });
  }

  template <typename NormsOf>
  void sum_tiles_in_place(View<T> x, View<T> w, View<T> out, int threads, const Sides<A>& sides,
                          const NormsOf& norms_of) const {
    Offsets w_taps;
    for (int k = 0; k < kTaps; ++k) w_taps.of[k] = k * w.part;
    for_tiles(threads, map_size(), 0, [&](const Tile& tile, A* in) {
      pack(tile, 1, x, in, maps);
      const int64_t count = tile.bottom - tile.top;
      const auto norms = norms_of(tile);
      const A* weight = start(w, tile);
      A* sum = start(out, tile);
      if (!channels_last)
        return sum_taps(count * width, groups, maps.part, in, taps, weight, w_taps, out.part, sum, &sides, norms);
      for (int64_t y = 0; y < count; ++y)
        for (int64_t x = 0; x < width; ++x)
          sum_taps(j, groups, maps.part, in + (y * pitch + x) * maps.pixel, taps, weight + y * w.row + x * w.column,
                   w_taps, out.part, sum + y * out.row + x * out.column, static_cast<const Sides<A>*>(nullptr), norms);
    });
  }

  struct Moments {
    std::vector<double> mean, inverse_deviation;  // of weight channels
  };

  // Of channels side by side; in two passes, which lose no digits where the mean is large.
  Moments moments_of(const View<T>& w, int64_t image, int64_t first, int64_t channels, double eps) const {
    const double count = double(kTaps) * height * width;
    Moments moments{std::vector<double>(channels), std::vector<double>(channels)};
    const T* start = w.data + image * w.image + first * w.j;
    std::vector<A> origins(channels);
    add_up(w, start, origins, moments.mean, [](const auto& v) { return v; });
    for (double& m : moments.mean) m /= count;
    std::transform(moments.mean.begin(), moments.mean.end(), origins.begin(), [](double m) { return A(m); });
    add_up(w, start, origins, moments.inverse_deviation, [](const auto& v) { return v * v; });
    for (double& v : moments.inverse_deviation) v = 1 / std::sqrt(v / count + eps);
    return moments;
  }

  // sums[j] = term(weight - origin[j]) over taps and pixels
  template <typename Term>
  void add_up(const View<T>& w, const T* start, const std::vector<A>& origins, std::vector<double>& sums,
              const Term& term) const {
    using S = Simd<A>;
    const int64_t channels = origins.size();
    if (w.column == 1) {
      const bool dense = w.row == width;
      const int64_t lines = dense ? 1 : height, n = dense ? height * width : width, whole = n / S::width * S::width;
      for (int64_t channel = 0; channel < channels; ++channel) {
        typename S::Vector lanes{};
        A rest(0);
        for (int64_t k = 0; k < kTaps; ++k)
          for (int64_t line = 0; line < lines; ++line) {
            const T* from = start + channel * w.j + k * w.part + line * w.row;
            for (int64_t i = 0; i < whole; i += S::width) lanes += term(S::read(from + i) - origins[channel]);
            for (int64_t i = whole; i < n; ++i) rest += term(A(from[i]) - origins[channel]);
          }
        for (int64_t i = 0; i < S::width; ++i) sums[channel] += lanes[i];
        sums[channel] += rest;
      }
      return;
    }
    const bool vector = w.j == 1 && channels == S::width;
    std::vector<A> row(channels);
    for (int64_t y = 0; y < height; ++y) {
      std::fill(row.begin(), row.end(), A(0));
      typename S::Vector lanes[kTaps]{};
      for (int64_t x = 0; x < width; ++x) {
        const T* from = start + y * w.row + x * w.column;
        for (int64_t k = 0; k < kTaps; ++k)
          if (vector)
            lanes[k] += term(S::read(from + k * w.part) - S::at(origins.data()));
          else
            for (int64_t i = 0; i < channels; ++i) row[i] += term(A(from[k * w.part + i * w.j]) - origins[i]);
      }
      if (vector)
        for (int64_t k = 0; k < kTaps; ++k) S::at(row.data()) += lanes[k];
      for (int64_t i = 0; i < channels; ++i) sums[i] += row[i];
    }
  }

  void backward_in_place(View<T> grad, View<T> x, View<T> w, View<T> gx, View<T> gw, int threads) const {
    const Sides<A> sides(rows, width);
    for_tiles(threads, 2 * map_size() + weight_size(), 0, [&](const Tile& tile, A* in) {
      A *out_grad = in + map_size(), *weight = out_grad + map_size();
      pack(tile, 1, x, in, maps);
      pack(tile, 1, grad, out_grad, maps);
      pack(tile, 1, w, weight, weights);
      zero_sideways(tile, 1, weight);
      const int64_t n = (tile.bottom - tile.top) * width;
      sum_taps(n, groups, maps.part, out_grad, taps_back, weight, weight_back, gx.part, start(gx, tile));
      sum_groups(n, groups, maps.part, in, taps, out_grad + pitch + 1, gw.part, start(gw, tile), &sides);
    });
  }

  T* start(const View<T>& view, const Tile& tile) const {
    return view.data + tile.image * view.image + tile.channel * view.j + tile.top * view.row;
  }

  int64_t map_size() const { return pixels * (channels_last ? maps.pixel : groups); }
  int64_t weight_size() const { return pixels * (channels_last ? weights.pixel : kTaps); }

  template <typename Work>
  void for_tiles(int threads, int64_t inputs, int64_t outputs, const Work& work) const {
    const int64_t channels = channels_last ? 1 : j;
    const int64_t count = batch * channels * bands;
    threads = int(std::clamp<int64_t>(batch * groups * j * height * width / kTileElements, 1, threads));
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      const std::unique_ptr<A[]> buffer(new A[inputs + outputs]);
      std::fill_n(buffer.get(), inputs, A(0));  // the zeros between rows, which packing leaves alone
#pragma omp for schedule(static)
      for (int64_t i = 0; i < count; ++i) {
        const int64_t band = i % bands;
        work(Tile{i / bands / channels, i / bands % channels, height * band / bands, height * (band + 1) / bands},
             buffer.get());
      }
    }
  }

  // Calls step(first pixel, vector lanes) until all pixels of a tile are done.
  template <typename Step>
  void for_vectors(const Tile& tile, const Step& step) const {
    const int64_t count = tile.bottom - tile.top;
    if (!channels_last) return step(0, count * pitch);
    for (int64_t y = 0; y < count; ++y)
      for (int64_t x = 0; x < width; ++x) step(y * pitch + x, lanes);
  }

  // Copies a tile, and `margin` pixels around it, into its buffer; zeros stand for rows outside the map.
  void pack(const Tile& tile, int64_t margin, const View<T>& view, A* buffer, Packed packed) const {
    const int64_t first = tile.top - margin, from = std::max<int64_t>(first, 0);
    const int64_t last = tile.bottom + margin, to = std::min(last, height);
    A* rows = buffer + margin * packed.pixel;
    if (bands > 1) {  // otherwise no tile before this one has had rows there
      zero_rows(view.parts, 0, from - first, rows, packed);
      zero_rows(view.parts, to - first, last - first, rows, packed);
    }
    for_runs(tile, from, to, view, rows + (from - first) * pitch * packed.pixel, packed,
             [](auto n, T* there, int64_t step, A* here, int64_t to_step) { copy(n, there, step, here, to_step); });
  }

  void unpack(const Tile& tile, const View<T>& view, A* buffer, Packed packed) const {
    for_runs(tile, tile.top, tile.bottom, view, buffer, packed,
             [](auto n, T* there, int64_t step, A* here, int64_t to_step) { copy(n, here, to_step, there, step); });
  }

  void zero_rows(int64_t parts, int64_t from, int64_t to, A* rows, Packed packed) const {
    const int64_t count = (to - from) * pitch * packed.pixel;
    A* start = rows + from * pitch * packed.pixel;
    for (int64_t part = 0; part < (channels_last ? 1 : parts); ++part)
      std::fill_n(start + part * packed.part, count, A(0));
  }

  // Where channels come first, rows lie end to end, and a tap beside the map meets another row: it weighs nothing.
  // So an infinite value makes NaN at the other side of the map, too.
  void zero_sideways(const Tile& tile, int64_t margin, A* weight) const {
    if (channels_last) return;
    const int64_t count = tile.bottom - tile.top + 2 * margin;
    for (int k = 0; k < kTaps; ++k) {
      if (k % 3 == 1) continue;
      A* column = weight + k * weights.part + margin + (k % 3 ? width - 1 : 0);
      for (int64_t y = 0; y < count; ++y) column[y * pitch] = A(0);
    }
  }

  // Calls run(count, tensor, step, buffer, step) for the elements of rows, in runs as long as memory allows.
  template <typename Run>
  void for_runs(const Tile& tile, int64_t from, int64_t to, const View<T>& view, A* rows, Packed packed,
                const Run& run) const {
    T* image = view.data + tile.image * view.image + tile.channel * view.j;
    if (!channels_last && view.column == 1 && view.row == width) {
      for (int64_t part = 0; part < view.parts; ++part)
        run((to - from) * width, image + part * view.part + from * view.row, 1, rows + part * packed.part, 1);
      return;
    }
    for (int64_t y = from; y < to; ++y) {
      T* there = image + y * view.row;
      A* row = rows + (y - from) * pitch * packed.pixel;
      if (!channels_last) {
        for (int64_t part = 0; part < view.parts; ++part)
          run(width, there + part * view.part, view.column, row + part * packed.part, 1);
      } else if (view.j == 1 && view.part == j && view.column == packed.pixel) {
        run(width * packed.pixel, there, 1, row, 1);
      } else if (view.part == 1 && view.parts == kTaps) {  // weights as a convolution of such memory writes them
        for (int64_t x = 0; x < width; ++x)
          for (int64_t channel = 0; channel < j; ++channel)
            run(std::integral_constant<int64_t, kTaps>(), there + x * view.column + channel * view.j, 1,
                row + x * packed.pixel + channel, packed.part);
      } else {
        for (int64_t x = 0; x < width; ++x)
          for (int64_t part = 0; part < view.parts; ++part)
            run(j, there + x * view.column + part * view.part, view.j, row + x * packed.pixel + part * packed.part, 1);
      }
    }
  }

  bool channels_last;
  int64_t batch, groups, j, height, width;
  int64_t rows, bands, pitch, lanes, pixels;  // of a tile: rows at most
  Packed maps, weights;
  Offsets taps, taps_back, own_weight, weight_back;
};

template <typename T, typename A>
void run_forward(bool channels_last, const int64_t* sizes, void* x, void* w, void* out, int threads) {
  Ska<T, A> ska(channels_last, sizes);
  ska.forward(ska.map(x), ska.weight(w, sizes + 5), ska.map(out), threads);
}

// norms: weight and bias of the GroupNorm, weight, bias, mean and variance of the BatchNorm.
template <typename T, typename A>
void run_forward_normed(bool channels_last, const int64_t* sizes, void* x, void* w, void* out, const A* const* norms,
                        double eps, double batch_eps, int threads) {
  Ska<T, A> ska(channels_last, sizes);
  ska.forward_normed(ska.map(x), ska.weight(w, sizes + 5), ska.map(out), {norms[0], norms[1], eps},
                     {norms[2], norms[3], norms[4], norms[5], batch_eps}, threads);
}

template <typename T, typename A>
void run_backward(bool channels_last, const int64_t* sizes, void* grad, void* x, void* w, void* gx, void* gw,
                  int threads) {
  Ska<T, A> ska(channels_last, sizes);
  ska.backward(ska.map(grad), ska.map(x), ska.weight(w, sizes + 5), ska.map(gx), ska.weight(gw, sizes + 10), threads);
}

}  // namespace

// Maps are dense, NCHW or NHWC. sizes: B, C, J, H, W, then the strides of weights, and those of their gradients, for B,
// J, tap, H, W.
#define SKA_KERNELS(NAME, T, A)                                                                                     \
  extern "C" void ska_forward_##NAME(int channels_last, const int64_t* sizes, void* x, void* w, void* out,          \
                                     int threads) {                                                                  \
    run_forward<T, A>(channels_last, sizes, x, w, out, threads);                                                    \
  }                                                                                                                  \
  extern "C" void ska_forward_normed_##NAME(int channels_last, const int64_t* sizes, void* x, void* w, void* out,   \
                                            const A* const* norms, double eps, double batch_eps, int threads) {      \
    run_forward_normed<T, A>(channels_last, sizes, x, w, out, norms, eps, batch_eps, threads);                       \
  }                                                                                                                  \
  extern "C" void ska_backward_##NAME(int channels_last, const int64_t* sizes, void* grad, void* x, void* w,        \
                                      void* gx, void* gw, int threads) {                                             \
    run_backward<T, A>(channels_last, sizes, grad, x, w, gx, gw, threads);                                          \
  }

SKA_KERNELS(float32, float, float)
SKA_KERNELS(float64, double, double)
SKA_KERNELS(bfloat16, BFloat16, float)
