// Deformable attention on the CPU, forward and backward.
//
// Needs only a C++17 compiler that knows GCC's vector types; with OpenMP it runs on several threads.
//
// For a few queries, the cells of all samples and their shares are found first, many at once. Then every sample adds its
// four cells to the D channels of its head, which lie side by side and stay in registers: a "Row" has as many as the
// compiler knows, and other numbers are put together of these. A thread owns queries in the forward pass and heads of an
// image in the backward pass, so every sum has one order, whatever the threads.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

struct BFloat16 {
  uint16_t bits;
};

// Vectors of W elements that start anywhere.
template <typename T, int W>
struct VectorOf {
  typedef T Type __attribute__((vector_size(W * sizeof(T)), aligned(sizeof(T)), may_alias));
};
template <typename T, int W>
using Vector = typename VectorOf<T, W>::Type;

// W elements of memory in the type of the sums. (Copying them by memcpy goes over the stack, and takes three times as
// long.)
template <typename A, int W, typename T>
inline Vector<A, W> load(const T* p) {
  if constexpr (std::is_same_v<T, A>) {
    return *reinterpret_cast<const Vector<A, W>*>(p);
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    const auto bits = __builtin_convertvector(*reinterpret_cast<const Vector<uint16_t, W>*>(p), Vector<uint32_t, W>);
    return reinterpret_cast<Vector<A, W>>(bits << 16);
  } else {
    return __builtin_convertvector(*reinterpret_cast<const Vector<T, W>*>(p), Vector<A, W>);
  }
}
template <int W, typename T, typename V>
inline void store(T* p, const V& vector) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    const auto words = reinterpret_cast<Vector<uint32_t, W>>(vector);
    // To the nearest, ties to even; NaN stays NaN.
    const auto bits = vector == vector ? (words + 0x7fff + ((words >> 16) & 1)) >> 16 : words >> 16 | 0x40;
    *reinterpret_cast<Vector<uint16_t, W>*>(p) = __builtin_convertvector(bits, Vector<uint16_t, W>);
  } else {
    *reinterpret_cast<Vector<T, W>*>(p) = __builtin_convertvector(vector, Vector<T, W>);
  }
}

constexpr int widest(int d) { return d >= 16 ? 16 : d >= 8 ? 8 : d >= 4 ? 4 : d >= 2 ? 2 : 1; }

constexpr int kLanes = 4;  // partial sums of a dot product, which are added later, those of many samples at once

// D channels in the type of the sums.
template <typename A, int D>
struct Row {
  static constexpr int W = widest(D);
  Vector<A, W> head;
  Row<A, D - W> tail;

  template <typename T>
  static Row read(const T* p) {
    return {load<A, W>(p), Row<A, D - W>::read(p + W)};
  }
  template <typename T>
  void add(A factor, const T* p) {
    head += factor * load<A, W>(p);
    tail.add(factor, p + W);
  }
  template <typename T>
  void write(T* p) const {
    store<W>(p, head);
    tail.write(p + W);
  }
  // p += factor * this
  void add_to(A factor, A* p) const {
    store<W>(p, load<A, W>(p) + factor * head);
    tail.add_to(factor, p + W);
  }
  template <typename T>
  Vector<A, kLanes> dot(const T* p, Vector<A, kLanes> sum) const {
    return tail.dot(p + W, sum + fold<W>(head * load<A, W>(p)));
  }

 private:
  template <int N>
  static Vector<A, kLanes> fold(const Vector<A, N>& v) {
    Vector<A, kLanes> result = {};
    if constexpr (N > kLanes) {
      Vector<A, N / 2> half[2];
      std::memcpy(half, &v, sizeof(v));
      return fold<N / 2>(half[0] + half[1]);
    } else {
      std::memcpy(&result, &v, sizeof(v));
      return result;
    }
  }
};

template <typename A>
struct Row<A, 0> {
  template <typename T>
  static Row read(const T*) {
    return {};
  }
  template <typename T>
  void add(A, const T*) {}
  template <typename T>
  void write(T*) const {}
  void add_to(A, A*) const {}
  template <typename T>
  Vector<A, kLanes> dot(const T*, Vector<A, kLanes> sum) const {
    return sum;
  }
};

// Calls pass(first channel, channels as a constant) until all channels are done.
template <typename Pass>
void for_channels(int64_t dim, const Pass& pass) {
  int64_t first = 0;
  const auto next = [&](auto width) {
    for (; dim - first >= width; first += width) pass(first, width);
  };
  next(std::integral_constant<int, 32>());
  next(std::integral_constant<int, 24>());
  next(std::integral_constant<int, 12>());
  next(std::integral_constant<int, 8>());
  next(std::integral_constant<int, 6>());
  next(std::integral_constant<int, 4>());
  next(std::integral_constant<int, 1>());
}

constexpr int kWide = 16;          // samples that are located at once
constexpr int64_t kSamples = 256;  // samples of a block of queries, about

// Memory of n numbers, whole vectors where the processor likes them.
template <typename N>
class Buffer {
 public:
  explicit Buffer(int64_t n) : lines(n * sizeof(N) / sizeof(Line) + 1) {}
  operator N*() { return reinterpret_cast<N*>(lines.data()); }
  operator const N*() const { return reinterpret_cast<const N*>(lines.data()); }

 private:
  struct alignas(64) Line {
    char bytes[64];
  };
  std::vector<Line> lines;
};

// The samples of a block of queries and heads.
template <typename A>
struct Samples {
  typedef std::conditional_t<sizeof(A) == 4, int32_t, int64_t> Index;

  // `heads` of them altogether, for all queries of a block.
  Samples(int64_t heads, int64_t levels, int64_t points, const int64_t* shapes)
      : stride((heads * levels * points + kWide - 1) / kWide * kWide), rows(stride), columns(stride), start(stride),
        cell(stride), inside(stride), x(stride), y(stride), weight(stride), share(4 * stride), dot(4 * stride),
        lanes(4 * stride * kLanes) {
    for (int64_t m = 0, i = 0; m < heads; ++m) {
      int64_t first = 0;
      for (int64_t level = 0; level < levels; ++level) {
        const int64_t h = shapes[2 * level], w = shapes[2 * level + 1];
        for (int64_t point = 0; point < points; ++point, ++i) {
          rows[i] = Index(h);
          columns[i] = Index(w);
          start[i] = Index(first);
        }
        first += h * w;
      }
    }
  }

  int64_t stride;                     // of what there is of each of four cells
  Buffer<Index> rows, columns, start; // the level's size and first cell
  Buffer<Index> cell, inside;         // the cell at the upper left; one bit for each of the four that exists
  Buffer<A> x, y, weight;             // place in cells, then the fraction of it; the attention weight
  Buffer<A> share;                    // how much of the sum each cell gives
  Buffer<A> dot, lanes;               // of each cell with the gradient; partial sums of it

  // Takes the n samples of a query as the block's samples from `first` on.
  void take(int64_t first, int64_t n, const A* locations, const A* weights) {
    A *xs = x + first, *ys = y + first, *ws = weight + first;
    for (int64_t i = 0; i < n; ++i) {
      xs[i] = locations[2 * i];
      ys[i] = locations[2 * i + 1];
      ws[i] = weights[i];
    }
  }

  // Locates the first n samples.
  void locate(int64_t n) {
    typedef Vector<A, kWide> V;
    typedef Vector<Index, kWide> I;
    for (int64_t i = 0; i < n; i += kWide) {
      const I height = load<Index, kWide>(rows + i), width = load<Index, kWide>(columns + i);
      const auto [left, fx] = split<V, I>(load<A, kWide>(x + i), width);
      const auto [top, fy] = split<V, I>(load<A, kWide>(y + i), height);
      const I x0 = (left >= 0) & (left < width), x1 = (left >= -1) & (left < width - 1);
      const I y0 = (top >= 0) & (top < height), y1 = (top >= -1) & (top < height - 1);
      const V below = load<A, kWide>(weight + i) * fy, above = load<A, kWide>(weight + i) - below;
      const V above_right = above * fx, below_right = below * fx;
      store<kWide>(inside + i, (y0 & x0 & 1) | (y0 & x1 & 2) | (y1 & x0 & 4) | (y1 & x1 & 8));
      store<kWide>(cell + i, load<Index, kWide>(start + i) + top * width + left);
      store<kWide>(x + i, fx);
      store<kWide>(y + i, fy);
      store<kWide>(share + i, above - above_right);
      store<kWide>(share + stride + i, above_right);
      store<kWide>(share + 2 * stride + i, below - below_right);
      store<kWide>(share + 3 * stride + i, below_right);
    }
  }

  // Gradients of n samples from `first` on, from the products of the query's gradient with their cells.
  void differentiate(int64_t first, int64_t n, A* glocations, A* gweights) {
    for (int k = 0; k < 4; ++k) {
      A* sum = dot + k * stride;
      const A* part = lanes + k * stride * kLanes;
      for (int64_t i = first; i < first + n; ++i)
        sum[i] = (part[kLanes * i] + part[kLanes * i + 1]) + (part[kLanes * i + 2] + part[kLanes * i + 3]);
    }
    const A *upper_left = dot + first, *upper_right = upper_left + stride;
    const A *lower_left = upper_right + stride, *lower_right = lower_left + stride;
    const A *fx = x + first, *fy = y + first, *w = weight + first;
    for (int64_t i = 0; i < n; ++i) {
      const A upper = upper_right[i] - upper_left[i], lower = lower_right[i] - lower_left[i];
      const A down = lower_left[i] - upper_left[i] + fx[i] * (lower - upper);
      gweights[i] = upper_left[i] + fx[i] * upper + fy[i] * down;
      glocations[2 * i] = A(columns[first + i]) * w[i] * (upper + fy[i] * (lower - upper));
      glocations[2 * i + 1] = A(rows[first + i]) * w[i] * down;
    }
  }

 private:
  // The cell before a place, and the distance. What is two cells outside takes nothing, wherever it is; so does NaN,
  // which stays in the distance.
  template <typename V, typename I>
  static std::pair<I, V> split(const V& location, const I& size) {
    const V extent = __builtin_convertvector(size, V), upper = extent + 1, lower = upper - upper - 2;
    const V place = location * extent - A(0.5);
    V near = place < upper ? place : upper;
    near = near > lower ? near : lower;
    const I low = __builtin_convertvector(near + 2, I) - 2;
    return {low, place == place ? near - __builtin_convertvector(low, V) : place};
  }
};

template <typename T, typename A>
class DeformAttn {
 public:
  DeformAttn(const int64_t* sizes, const int64_t* shapes)
      : batch(sizes[0]), cells(sizes[1]), heads(sizes[2]), dim(sizes[3]), queries(sizes[4]), samples(sizes[5] * sizes[6]),
        block(std::max<int64_t>(kSamples / (heads * samples), 1)), empty(block * heads, sizes[5], sizes[6], shapes) {}

  void forward(const T* value, const A* locations, const A* weights, T* out, int threads) const {
    const int64_t blocks = (queries + block - 1) / block;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      Samples<A> s = empty;
#pragma omp for schedule(static)
      for (int64_t i = 0; i < batch * blocks; ++i) {
        const int64_t b = i / blocks, first = i % blocks * block;
        const int64_t from = b * queries + first, to = b * queries + std::min(first + block, queries);
        locate(s, {0, heads}, from, to, locations, weights);
        const T* image = value + b * cells * heads * dim;
        for_channels(dim, [&](int64_t channel, auto width) {
          for (int64_t q = from; q < to; ++q)
            for (int64_t m = 0; m < heads; ++m)
              sum_head<width>(s, ((q - from) * heads + m) * samples, image + m * dim + channel)
                  .write(out + (q * heads + m) * dim + channel);
        });
      }
    }
  }

  // Of float32 and float64, sums go straight to gvalue; of others, through a buffer. Heads are shared among threads
  // where there are fewer images than threads.
  void backward(const T* grad, const T* value, const A* locations, const A* weights, T* gvalue, A* glocations, A* gweights,
                int threads) const {
    constexpr bool direct = std::is_same_v<T, A>;
    const int64_t step = heads * dim, parts = std::clamp<int64_t>(threads / batch, 1, heads);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      Samples<A> s = empty;
      std::vector<A> buffer;
#pragma omp for schedule(static)
      for (int64_t i = 0; i < batch * parts; ++i) {
        const int64_t b = i / parts, p = i % parts, stop = (b + 1) * queries;
        const Heads part = {p * heads / parts, (p + 1) * heads / parts - p * heads / parts};
        const int64_t offset = b * cells * step + part.first * dim, own = part.count * dim;
        T* target = gvalue + offset;
        if constexpr (direct)
          for (int64_t n = 0; n < cells; ++n) std::fill_n(target + n * step, own, A(0));
        else
          buffer.assign(cells * own, A(0));
        for (int64_t from = b * queries; from < stop; from += block) {
          const int64_t to = std::min(from + block, stop);
          locate(s, part, from, to, locations, weights);
          for (int64_t q = from; q < to; ++q) {
            const int64_t first = (q - from) * part.count * samples, head = q * heads + part.first;
            if constexpr (direct)
              spread(s, first, part, grad + head * dim, value + offset, target, step);
            else
              spread(s, first, part, grad + head * dim, value + offset, buffer.data(), own);
            s.differentiate(first, part.count * samples, glocations + head * samples * 2, gweights + head * samples);
          }
        }
        if constexpr (!direct)
          for (int64_t n = 0; n < cells; ++n)
            for_channels(own, [&](int64_t c, auto width) {
              Row<A, width>::read(buffer.data() + n * own + c).write(target + n * step + c);
            });
      }
    }
  }

 private:
  struct Heads {
    int64_t first, count;
  };

  // Some heads of some queries, counted over all images.
  void locate(Samples<A>& s, const Heads& part, int64_t from, int64_t to, const A* locations, const A* weights) const {
    const int64_t n = part.count * samples;
    for (int64_t q = from; q < to; ++q) {
      const int64_t first = (q * heads + part.first) * samples;
      s.take((q - from) * n, n, locations + 2 * first, weights + first);
    }
    s.locate((to - from) * n);
  }

  template <int D>
  Row<A, D> sum_head(const Samples<A>& s, int64_t first, const T* value) const {
    const int64_t step = heads * dim;
    Row<A, D> sum = {};
    for (int64_t i = first; i < first + samples; ++i) {
      const T* cell = value + s.cell[i] * step;
      const int64_t below = s.columns[i] * step;
      const A* share = s.share + i;
      if (s.inside[i] == 15) {
        sum.add(share[0], cell);
        sum.add(share[s.stride], cell + step);
        sum.add(share[2 * s.stride], cell + below);
        sum.add(share[3 * s.stride], cell + below + step);
      } else {
        static const A zeros[D] = {};
        for (int k = 0; k < 4; ++k)
          if (s.inside[i] >> k & 1)
            sum.add(share[k * s.stride], cell + (k & 1) * step + (k >> 1) * below);
          else
            sum.add(share[k * s.stride], zeros);  // nothing, unless NaN
      }
    }
    return sum;
  }

  // What a query's gradient gives to the cells of its samples, which start with `first`, and its products with them.
  void spread(Samples<A>& s, int64_t first, const Heads& part, const T* grad, const T* value, A* gvalue,
              int64_t gstep) const {
    const int64_t step = heads * dim;
    for_channels(dim, [&](int64_t channel, auto width) {
      for (int64_t m = 0; m < part.count; ++m) {
        const int64_t offset = m * dim + channel;
        const auto g = Row<A, width>::read(grad + offset);
        for (int64_t i = first + m * samples; i < first + (m + 1) * samples; ++i) {
          for (int k = 0; k < 4; ++k) {
            A* lanes = s.lanes + (k * s.stride + i) * kLanes;
            Vector<A, kLanes> dot = {};
            if (channel) dot = load<A, kLanes>(lanes);
            if (s.inside[i] >> k & 1) {
              const int64_t cell = s.cell[i] + (k & 1) + (k >> 1) * s.columns[i];
              dot = g.dot(value + cell * step + offset, dot);
              g.add_to(s.share[k * s.stride + i], gvalue + cell * gstep + offset);
            }
            store<kLanes>(lanes, dot);
          }
        }
      }
    });
  }

  int64_t batch, cells, heads, dim, queries, samples;
  int64_t block;  // queries whose samples are located in one go
  Samples<A> empty;
};

}  // namespace

// Tensors are contiguous. sizes: B, N, M, D, Q, L, P. shapes: height and width of every level.
#define DEFORM_ATTN_KERNELS(NAME, T, A)                                                                                \
  extern "C" void deform_attn_forward_##NAME(const int64_t* sizes, const int64_t* shapes, const void* value,           \
                                             const void* locations, const void* weights, void* out, int threads) {     \
    DeformAttn<T, A>(sizes, shapes)                                                                                    \
        .forward(static_cast<const T*>(value), static_cast<const A*>(locations), static_cast<const A*>(weights),       \
                 static_cast<T*>(out), threads);                                                                       \
  }                                                                                                                    \
  extern "C" void deform_attn_backward_##NAME(const int64_t* sizes, const int64_t* shapes, const void* grad,           \
                                              const void* value, const void* locations, const void* weights,           \
                                              void* gvalue, void* glocations, void* gweights, int threads) {           \
    DeformAttn<T, A>(sizes, shapes)                                                                                    \
        .backward(static_cast<const T*>(grad), static_cast<const T*>(value), static_cast<const A*>(locations),         \
                  static_cast<const A*>(weights), static_cast<T*>(gvalue), static_cast<A*>(glocations),                \
                  static_cast<A*>(gweights), threads);                                                                 \
  }

DEFORM_ATTN_KERNELS(float32, float, float)
DEFORM_ATTN_KERNELS(float64, double, double)
DEFORM_ATTN_KERNELS(bfloat16, BFloat16, float)
#if defined(__FLT16_MANT_DIG__)
DEFORM_ATTN_KERNELS(float16, _Float16, float)
#endif
