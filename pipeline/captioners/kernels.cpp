// The loops between the products of an attention decoder, for CPUs. A row is a caption; the captions of an image are
// served together, so that its keys and features are read once a word, and finished ones are left out.
//
// Owns loops only: `attention.py` and `lstm.py` say what each function computes, and check what it is given.
// B images, R regions, N cells of the features, A attention size, C channels, H hidden size, n unfinished captions.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

typedef int64_t Int;

#if defined(__AVX512F__)
enum { LANES = 16 };
#elif defined(__AVX__)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif
// Inlined into its caller, such a loop runs out of registers.
#define APART __attribute__((noinline))

enum { MOST = 5, TILE = 256, STRIP = 1024 };
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

struct Bfloat16 {
    uint16_t bits;
};

// Loops go by LANES values; the last, partial ones are loaded as if zeros followed.
struct Whole {
    Int count() const { return LANES; }
};
struct Part {
    Int left;
    Int count() const { return left; }
};
template <typename Body> static inline void strips(Int size, const Body &body) {
    Int at = 0;
    for (; at + LANES <= size; at += LANES) body(at, Whole());
    if (at < size) body(at, Part{size - at});
}

template <typename Lanes> static inline Floats load(const float *from, Lanes lanes) {
    Floats values = {};
    memcpy(&values, from, lanes.count() * sizeof(float));
    return values;
}
template <typename Lanes> static inline Floats load(const Bfloat16 *from, Lanes lanes) {
    Halves halves = {};
    memcpy(&halves, from, lanes.count() * sizeof(Bfloat16));
    return (Floats)(__builtin_convertvector(halves, Ints) << 16);
}
template <typename Lanes> static inline void store(float *to, Floats values, Lanes lanes) {
    memcpy(to, &values, lanes.count() * sizeof(float));
}
template <typename Lanes> static inline void store(Bfloat16 *to, Floats values, Lanes lanes) {
    Ints bits = (Ints)values;
    Ints rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to the nearest, ties to even
    rounded = values != values ? Ints{} + 0x7fc0 : rounded;     // NaN stays NaN
    Halves halves = __builtin_convertvector(rounded, Halves);
    memcpy(to, &halves, lanes.count() * sizeof(Bfloat16));
}
static inline float sum(Floats values) {
    float total = 0;
    for (int lane = 0; lane < LANES; lane++) total += values[lane];
    return total;
}

static inline Floats clamped(Floats x, float low, float high) {
    Floats least = Floats{} + low, most = Floats{} + high;
    x = x < least ? least : x;
    return x > most ? most : x;
}
static inline Floats exponential(Floats x) {  // within 2 units in the last place (Cephes expf)
    x = clamped(x, -87.0f, 87.0f);  // one more, and `inverse` of the result would not be a number
    Floats half = x < 0.0f ? Floats{} - 0.5f : Floats{} + 0.5f;
    Ints whole = __builtin_convertvector(x * 1.44269504f + half, Ints);
    Floats n = __builtin_convertvector(whole, Floats);
    Floats r = x - n * 0.693359375f - n * -2.12194440e-4f;
    Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (Floats)((whole + 127) << 23);
}
static inline Floats inverse(Floats x) {  // of x > 0, within 1e-7: a guess from the bits, then Newton; division is slow
    Floats guess = (Floats)(0x7ef311c7 - (Ints)x);
    guess = guess * (2.0f - x * guess);
    guess = guess * (2.0f - x * guess);
    return guess * (2.0f - x * guess);
}
static inline Floats sigmoid(Floats x) { return inverse(1.0f + exponential(-x)); }
static inline Floats tanh_of(Floats x) { return 1.0f - 2.0f * inverse(exponential(2.0f * x) + 1.0f); }

// How a key and a query become a value. For tanh both come as e^(2x), so that no exponential is left for their sum:
// tanh(k + q) = 1 - 2 / (e^(2k) e^(2q) + 1).
template <typename T> struct Relu {
    typedef T Key;
    static inline Floats query(Floats x) { return x; }
    static inline Floats meet(Floats key, Floats query) { return key + query; }
    static inline Floats value(Floats x) { return x < 0.0f ? Floats{} : x; }
    static inline Floats slope(Floats x, Floats) { return x > 0.0f ? Floats{} + 1.0f : Floats{}; }
};
template <typename T> struct Tanh {
    typedef float Key;
    static inline Floats query(Floats x) { return exponential(2.0f * clamped(x, -43.0f, 43.0f)); }
    static inline Floats meet(Floats key, Floats query) { return key * query; }
    static inline Floats value(Floats x) {
        Floats most = Floats{} + 1e30f;
        return 1.0f - 2.0f * inverse((x > most ? most : x) + 1.0f);
    }
    static inline Floats slope(Floats, Floats value) { return 1.0f - value * value; }
};

struct Attention {  // what the captions of an image share
    Int images, regions, cells, size, channels, tanh;
    const void *keys, *features;  // (B, R, A), (B, N, C)
    const float *pooling;         // (R, N), or null where regions are cells
    const float *scale, *shift;   // (B, R) each, or null: a region is scale * pooled features - shift
    const float *score;           // (A,)
};

struct Words {  // a word of n captions
    Int rows, parts_stride;
    const Int *starts, *members;  // members[starts[b] .. starts[b + 1]], ascending: the captions of image b
    void *parts;                  // (n, P): queries, then the gate, which is replaced by its sigmoid
    const float *query_bias, *gate_bias;  // gate_bias null: no gate
    float *weights;                       // (n, R)
    void *context;                        // (n, C)
};

struct Above {  // gradients: of a word's context and weights, then of its queries, gate, keys and score
    Int parts_stride;
    const void *context, *through;  // (n, C) each, summed
    const float *weights;           // (n, R)
    void *parts;                    // (n, P')
    float *keys;                    // (B, R, A), added to; still without the score
    float *score;                   // (B, A), added to
};

template <typename F, int K>
APART static void energies(const typename F::Key *keys, const float *queries, const float *score, float *out, Int regions,
                     Int size) {
    for (Int r = 0; r < regions; r++) {
        Floats sums[K] = {};
        strips(size, [&](Int a, auto lanes) {
            Floats key = load(keys + r * size + a, lanes), share = load(score + a, lanes);
            for (int k = 0; k < K; k++)
                sums[k] += F::value(F::meet(key, load(queries + k * size + a, lanes))) * share;
        });
        for (int k = 0; k < K; k++) out[k * regions + r] = sum(sums[k]);
    }
}

template <typename F, int K>
APART static void energies_back(const typename F::Key *keys, const float *queries, const float *above, float *to_keys,
                          float *to_queries, float *to_score, Int regions, Int size) {
    for (Int first = 0; first < size; first += TILE) {
        Int width = size - first < TILE ? size - first : (Int)TILE;
        Floats own[K][TILE / LANES], sums[K][TILE / LANES] = {}, values[TILE / LANES] = {};
        strips(width, [&](Int a, auto lanes) {
            for (int k = 0; k < K; k++) own[k][a / LANES] = load(queries + k * size + first + a, lanes);
        });
        for (Int r = 0; r < regions; r++) {
            float e[K];
            for (int k = 0; k < K; k++) e[k] = above[k * regions + r];
            strips(width, [&](Int a, auto lanes) {
                Int i = a / LANES, at = r * size + first + a;
                Floats key = load(keys + at, lanes), total = load(to_keys + at, lanes), said = values[i];
                for (int k = 0; k < K; k++) {
                    Floats x = F::meet(key, own[k][i]), value = F::value(x), slope = F::slope(x, value) * e[k];
                    total += slope;
                    sums[k][i] += slope;
                    said += value * e[k];
                }
                store(to_keys + at, total, lanes);
                values[i] = said;
            });
        }
        strips(width, [&](Int a, auto lanes) {
            for (int k = 0; k < K; k++) store(to_queries + k * size + first + a, sums[k][a / LANES], lanes);
            store(to_score + first + a, load(to_score + first + a, lanes) + values[a / LANES], lanes);
        });
    }
}

template <typename T, int K, int COUNT>  // COUNT cells at once, so that the sums are read and written less often
static void weigh_cells(const T *cells, const float *weights, Floats *sums, Int cells_stride, Int weights_stride,
                        Int width) {
    float w[K][COUNT];
    for (int k = 0; k < K; k++)
        for (int i = 0; i < COUNT; i++) w[k][i] = weights[k * weights_stride + i];
    strips(width, [&](Int c, auto lanes) {
        Floats values[COUNT];
        for (int i = 0; i < COUNT; i++) values[i] = load(cells + i * cells_stride + c, lanes);
        for (int k = 0; k < K; k++) {
            Floats total = sums[k * (STRIP / LANES) + c / LANES];
            for (int i = 0; i < COUNT; i++) total += values[i] * w[k][i];
            sums[k * (STRIP / LANES) + c / LANES] = total;
        }
    });
}

template <typename T, int K>
APART static void weigh(const T *features, const float *weights, float *out, Int cells, Int channels) {
    for (Int first = 0; first < channels; first += STRIP) {
        Int width = channels - first < STRIP ? channels - first : (Int)STRIP, n = 0;
        Floats sums[K * (STRIP / LANES)] = {};
        for (; n + 4 <= cells; n += 4)
            weigh_cells<T, K, 4>(features + n * channels + first, weights + n, sums, channels, cells, width);
        for (; n < cells; n++)
            weigh_cells<T, K, 1>(features + n * channels + first, weights + n, sums, channels, cells, width);
        strips(width, [&](Int c, auto lanes) {
            for (int k = 0; k < K; k++)
                store(out + k * channels + first + c, sums[k * (STRIP / LANES) + c / LANES], lanes);
        });
    }
}

template <typename T, int K, int COUNT>
static void weigh_cells_back(const T *cells, const float *above, float *to_weights, Int stride, Int channels) {
    Floats sums[COUNT][K] = {};
    strips(channels, [&](Int c, auto lanes) {
        Floats values[COUNT];
        for (int i = 0; i < COUNT; i++) values[i] = load(cells + i * channels + c, lanes);
        for (int k = 0; k < K; k++) {
            Floats gradient = load(above + k * channels + c, lanes);
            for (int i = 0; i < COUNT; i++) sums[i][k] += values[i] * gradient;
        }
    });
    for (int i = 0; i < COUNT; i++)
        for (int k = 0; k < K; k++) to_weights[k * stride + i] = sum(sums[i][k]);
}

template <typename T, int K>
APART static void weigh_back(const T *features, const float *above, float *to_weights, Int cells, Int channels) {
    Int n = 0;
    for (; n + 2 <= cells; n += 2)
        weigh_cells_back<T, K, 2>(features + n * channels, above, to_weights + n, cells, channels);
    if (n < cells) weigh_cells_back<T, K, 1>(features + n * channels, above, to_weights + n, cells, channels);
}

static void softmax(float *values, Int count) {
    float top = values[0];
    for (Int i = 1; i < count; i++) top = values[i] > top ? values[i] : top;
    Floats totals = {};
    strips(count, [&](Int i, auto lanes) {
        Floats value = exponential(load(values + i, lanes) - top);
        store(values + i, value, lanes);
        totals += load(values + i, lanes);
    });
    float share = 1.0f / sum(totals);
    for (Int i = 0; i < count; i++) values[i] *= share;
}

template <typename T, typename F, int K> struct Group {  // K captions of image b
    const Attention &all;
    Int b;
    const Int *rows;
    std::vector<float> queries, weights, cells, contexts;

    Group(const Attention &all, Int b, const Int *rows)
        : all(all), b(b), rows(rows), queries(K * all.size), weights(K * all.regions), cells(K * all.cells),
          contexts(K * all.channels) {}

    const typename F::Key *keys() const { return (const typename F::Key *)all.keys + b * all.regions * all.size; }
    const T *features() const { return (const T *)all.features + b * all.cells * all.channels; }

    void read_queries(const Words &words) {
        for (int k = 0; k < K; k++) {
            const T *query = (const T *)words.parts + rows[k] * words.parts_stride;
            float *out = &queries[k * all.size];
            strips(all.size, [&](Int a, auto lanes) {
                store(out + a, F::query(load(query + a, lanes) + load(words.query_bias + a, lanes)), lanes);
            });
        }
    }

    void forward(const Words &words) {
        read_queries(words);
        energies<F, K>(keys(), queries.data(), all.score, weights.data(), all.regions, all.size);
        float shifts[K] = {};
        for (int k = 0; k < K; k++) {
            float *own = &weights[k * all.regions];
            softmax(own, all.regions);
            memcpy(words.weights + rows[k] * all.regions, own, all.regions * sizeof(float));
            if (all.scale)
                for (Int r = 0; r < all.regions; r++) {
                    shifts[k] += own[r] * all.shift[b * all.regions + r];
                    own[r] *= all.scale[b * all.regions + r];
                }
            pool(own, &cells[k * all.cells]);
        }
        weigh<T, K>(features(), cells.data(), contexts.data(), all.cells, all.channels);
        for (int k = 0; k < K; k++) write_context(words, k, shifts[k]);
    }

    void pool(const float *regions, float *out) {
        if (!all.pooling) {
            memcpy(out, regions, all.regions * sizeof(float));
            return;
        }
        memset(out, 0, all.cells * sizeof(float));
        for (Int r = 0; r < all.regions; r++)
            for (Int n = 0; n < all.cells; n++) out[n] += regions[r] * all.pooling[r * all.cells + n];
    }

    void pool_back(const float *above, float *out) {
        if (!all.pooling) {
            memcpy(out, above, all.regions * sizeof(float));
            return;
        }
        for (Int r = 0; r < all.regions; r++) {
            float total = 0;
            for (Int n = 0; n < all.cells; n++) total += above[n] * all.pooling[r * all.cells + n];
            out[r] = total;
        }
    }

    void write_context(const Words &words, int k, float shift) {
        const float *context = &contexts[k * all.channels];
        T *out = (T *)words.context + rows[k] * all.channels;
        T *gate = words.gate_bias ? (T *)words.parts + rows[k] * words.parts_stride + all.size : nullptr;
        strips(all.channels, [&](Int c, auto lanes) {
            Floats value = load(context + c, lanes) - shift;
            if (gate) {
                Floats open = sigmoid(load(gate + c, lanes) + load(words.gate_bias + c, lanes));
                store(gate + c, open, lanes);
                value *= open;
            }
            store(out + c, value, lanes);
        });
    }

    void backward(const Words &words, const Above &above) {
        read_queries(words);
        std::vector<float> to_energies(K * all.regions), to_queries(K * all.size);
        float shifts[K];
        for (int k = 0; k < K; k++) shifts[k] = read_gradient(words, above, k);
        weigh_back<T, K>(features(), contexts.data(), cells.data(), all.cells, all.channels);
        for (int k = 0; k < K; k++) {
            float *own = &to_energies[k * all.regions];
            pool_back(&cells[k * all.cells], own);
            if (all.scale)
                for (Int r = 0; r < all.regions; r++)
                    own[r] = own[r] * all.scale[b * all.regions + r] - shifts[k] * all.shift[b * all.regions + r];
            softmax_back(words, above, k, own);
        }
        energies_back<F, K>(keys(), queries.data(), to_energies.data(), above.keys + b * all.regions * all.size,
                               to_queries.data(), above.score + b * all.size, all.regions, all.size);
        for (int k = 0; k < K; k++) {
            T *out = (T *)above.parts + rows[k] * above.parts_stride;
            const float *sums = &to_queries[k * all.size];
            strips(all.size, [&](Int a, auto lanes) {
                store(out + a, load(sums + a, lanes) * load(all.score + a, lanes), lanes);
            });
        }
    }

    float read_gradient(const Words &words, const Above &above, int k) {  // of the context, and its sum
        const T *first = (const T *)above.context + rows[k] * all.channels;
        const T *second = (const T *)above.through + rows[k] * all.channels;
        float *out = &contexts[k * all.channels];
        const T *gate = words.gate_bias ? (const T *)words.parts + rows[k] * words.parts_stride + all.size : nullptr;
        const T *context = (const T *)words.context + rows[k] * all.channels;
        T *to_gate = (T *)above.parts + rows[k] * above.parts_stride + all.size;
        Floats total = {};
        strips(all.channels, [&](Int c, auto lanes) {
            Floats gradient = load(first + c, lanes) + load(second + c, lanes);
            if (gate) {
                Floats open = load(gate + c, lanes);
                store(to_gate + c, gradient * load(context + c, lanes) * (1.0f - open), lanes);
                gradient *= open;
            }
            store(out + c, gradient, lanes);
            total += gradient;
        });
        return sum(total);
    }

    void softmax_back(const Words &words, const Above &above, int k, float *gradient) {
        const float *weight = words.weights + rows[k] * all.regions;
        const float *direct = above.weights + rows[k] * all.regions;
        for (Int r = 0; r < all.regions; r++) gradient[r] += direct[r];
        float mean = 0;
        for (Int r = 0; r < all.regions; r++) mean += weight[r] * gradient[r];
        for (Int r = 0; r < all.regions; r++) gradient[r] = weight[r] * (gradient[r] - mean);
    }
};

template <typename T, typename F> struct Forward {
    const Attention &all;
    const Words &words;
    template <int K> void run(Int b, const Int *rows) const { Group<T, F, K>(all, b, rows).forward(words); }
};

template <typename T, typename F> struct Backward {
    const Attention &all;
    const Words &words;
    const Above &above;
    template <int K> void run(Int b, const Int *rows) const { Group<T, F, K>(all, b, rows).backward(words, above); }
};

template <typename Way> static void in_groups(Int images, const Words &words, const Way &way) {
#pragma omp parallel for schedule(dynamic)
    for (Int b = 0; b < images; b++) {
        const Int *rows = words.members + words.starts[b], *end = words.members + words.starts[b + 1];
        while (end > rows && end[-1] >= words.rows) end--;  // finished captions
        for (; rows < end; rows += MOST) switch (end - rows) {
            case 1: way.template run<1>(b, rows); break;
            case 2: way.template run<2>(b, rows); break;
            case 3: way.template run<3>(b, rows); break;
            case 4: way.template run<4>(b, rows); break;
            default: way.template run<MOST>(b, rows);
            }
    }
}

template <typename T> static void attend(const Attention &all, const Words &words) {
    if (all.tanh)
        in_groups(all.images, words, Forward<T, Tanh<T>>{all, words});
    else
        in_groups(all.images, words, Forward<T, Relu<T>>{all, words});
}

template <typename T> static void attend_back(const Attention &all, const Words &words, const Above &above) {
    if (all.tanh)
        in_groups(all.images, words, Backward<T, Tanh<T>>{all, words, above});
    else
        in_groups(all.images, words, Backward<T, Relu<T>>{all, words, above});
}

struct Cells {  // an LSTM's step of n captions; gates are enter, forget, leave, candidate
    Int rows, size;
    const float *before;  // (n, H)
    void *gates;          // (n, 4H): after sigmoid and tanh
    float *cell;          // (n, H)
    void *hidden;         // (n, H)
};

struct Sum {  // of (n, 4H): the gates before sigmoid and tanh
    Int hidden_stride;
    const void *word, *hidden, *context;
};

struct CellsAbove {
    Int gates_stride;
    const void *hidden, *carried;  // (n, H) each, summed
    float *carried_cell;           // (n, H): of this cell, then of the one before
    void *gates;                   // (n, 4H), filled: before sigmoid and tanh
};

template <typename T> static void remember(const Cells &step, const Sum &sum) {
    Int size = step.size;
#pragma omp parallel for
    for (Int row = 0; row < step.rows; row++) {
        const T *word = (const T *)sum.word + row * 4 * size;
        const T *hidden = (const T *)sum.hidden + row * sum.hidden_stride;
        const T *context = (const T *)sum.context + row * 4 * size;
        T *gates = (T *)step.gates + row * 4 * size, *out = (T *)step.hidden + row * size;
        const float *before = step.before + row * size;
        float *cell = step.cell + row * size;
        strips(size, [&](Int h, auto lanes) {
            Floats total[4];
            for (int part = 0; part < 4; part++) {
                Int at = part * size + h;
                total[part] = load(word + at, lanes) + load(hidden + at, lanes) + load(context + at, lanes);
            }
            Floats enter = sigmoid(total[0]), forget = sigmoid(total[1]), leave = sigmoid(total[2]);
            Floats candidate = tanh_of(total[3]), now = forget * load(before + h, lanes) + enter * candidate;
            store(cell + h, now, lanes);
            store(gates + h, enter, lanes);
            store(gates + size + h, forget, lanes);
            store(gates + 2 * size + h, leave, lanes);
            store(gates + 3 * size + h, candidate, lanes);
            store(out + h, leave * tanh_of(now), lanes);
        });
    }
}

template <typename T> static void remember_back(const Cells &step, const CellsAbove &above) {
    Int size = step.size;
#pragma omp parallel for
    for (Int row = 0; row < step.rows; row++) {
        const T *first = (const T *)above.hidden + row * size, *second = (const T *)above.carried + row * size;
        const T *gates = (const T *)step.gates + row * 4 * size;
        const float *before = step.before + row * size, *cell = step.cell + row * size;
        float *carried = above.carried_cell + row * size;
        T *out = (T *)above.gates + row * above.gates_stride;
        strips(size, [&](Int h, auto lanes) {
            Floats enter = load(gates + h, lanes), forget = load(gates + size + h, lanes);
            Floats leave = load(gates + 2 * size + h, lanes), candidate = load(gates + 3 * size + h, lanes);
            Floats bent = tanh_of(load(cell + h, lanes));
            Floats gradient = load(first + h, lanes) + load(second + h, lanes);
            Floats inner = load(carried + h, lanes) + gradient * leave * (1.0f - bent * bent);
            store(out + h, inner * candidate * enter * (1.0f - enter), lanes);
            store(out + size + h, inner * load(before + h, lanes) * forget * (1.0f - forget), lanes);
            store(out + 2 * size + h, gradient * bent * leave * (1.0f - leave), lanes);
            store(out + 3 * size + h, inner * enter * (1.0f - candidate * candidate), lanes);
            store(carried + h, inner * forget, lanes);
        });
    }
}

struct Moments {
    Int images, regions, cells, channels;
    const void *features;   // (B, N, C)
    const float *pooling;   // (R, N), or null where regions are cells
    float *mean, *variance;  // (B, R) each, filled
};

template <typename T> static void region(const T *features, const float *pooling, Int r, const Moments &all, float *out) {
    for (Int c = 0; c < all.channels; c++) out[c] = 0;
    for (Int n = pooling ? 0 : r; n < (pooling ? all.cells : r + 1); n++) {
        float share = pooling ? pooling[r * all.cells + n] : 1.0f;
        if (share != 0.0f)
            strips(all.channels, [&](Int c, auto lanes) {
                Floats value = load(features + n * all.channels + c, lanes);
                store(out + c, load(out + c, lanes) + value * share, lanes);
            });
    }
}

template <typename T> static void moments(const Moments &all) {
#pragma omp parallel for
    for (Int b = 0; b < all.images; b++) {
        std::vector<float> own(all.channels + LANES);
        for (Int r = 0; r < all.regions; r++) {
            region((const T *)all.features + b * all.cells * all.channels, all.pooling, r, all, own.data());
            Floats totals = {}, squares = {};
            strips(all.channels, [&](Int c, auto lanes) { totals += load(&own[c], lanes); });
            float mean = sum(totals) / all.channels;
            for (Int c = all.channels; c < all.channels + LANES; c++) own[c] = mean;  // adds nothing to the squares
            for (Int c = 0; c < all.channels; c += LANES) {
                Floats apart = load(&own[c], Whole()) - mean;
                squares += apart * apart;
            }
            all.mean[b * all.regions + r] = mean;
            all.variance[b * all.regions + r] = sum(squares) / all.channels;
        }
    }
}

struct Keys {  // key = scale * product - shift * sums + bias, for each of the regions of B images
    Int images, regions, size;
    const void *products;        // (B, R, A)
    const float *scale, *shift;  // (B, R)
    const float *sums, *bias;    // (A,)
    void *keys;                  // (B, R, A), filled
};

struct KeysAbove {
    const void *keys;    // (B, R, A)
    void *products;      // (B, R, A), filled
    float *sums, *bias;  // (B, A) each, filled: an image's share
};

template <typename T> static void shift_keys(const Keys &all) {
#pragma omp parallel for
    for (Int row = 0; row < all.images * all.regions; row++) {
        const T *product = (const T *)all.products + row * all.size;
        T *key = (T *)all.keys + row * all.size;
        float scale = all.scale[row], shift = all.shift[row];
        strips(all.size, [&](Int a, auto lanes) {
            Floats value = load(product + a, lanes) * scale - load(all.sums + a, lanes) * shift;
            store(key + a, value + load(all.bias + a, lanes), lanes);
        });
    }
}

template <typename T> static void shift_keys_back(const Keys &all, const KeysAbove &above) {
#pragma omp parallel for
    for (Int b = 0; b < all.images; b++) {
        float *sums = above.sums + b * all.size, *bias = above.bias + b * all.size;
        for (Int a = 0; a < all.size; a++) sums[a] = bias[a] = 0;
        for (Int row = b * all.regions; row < (b + 1) * all.regions; row++) {
            const T *key = (const T *)above.keys + row * all.size;
            T *product = (T *)above.products + row * all.size;
            float scale = all.scale[row], shift = all.shift[row];
            strips(all.size, [&](Int a, auto lanes) {
                Floats gradient = load(key + a, lanes);
                store(product + a, gradient * scale, lanes);
                store(sums + a, load(sums + a, lanes) - gradient * shift, lanes);
                store(bias + a, load(bias + a, lanes) + gradient, lanes);
            });
        }
    }
}

struct Scores {  // of M words among V
    Int rows, words;
    float smoothing;
    const void *logits;     // (M, V)
    const Int *targets;     // (M,)
    float *logs, *losses;   // (M,) each, filled: log sum exp, cross-entropy
    Int *likelier;          // (M,), filled: how many words are likelier than the target
};

struct ScoresAbove {
    const float *losses;  // (M,)
    void *logits;         // (M, V), filled
};

template <typename T> static void compare(const Scores &all) {
#pragma omp parallel for
    for (Int row = 0; row < all.rows; row++) {
        const T *logits = (const T *)all.logits + row * all.words;
        std::vector<float> own(all.words);
        strips(all.words, [&](Int v, auto lanes) { store(&own[v], load(logits + v, lanes), lanes); });
        float target = own[all.targets[row]], top = own[0];
        Int likelier = 0;
        for (Int v = 0; v < all.words; v++) {
            top = own[v] > top ? own[v] : top;
            likelier += own[v] > target;
        }
        Floats sums = {}, powers = {};
        strips(all.words, [&](Int v, auto lanes) {
            Floats value = load(&own[v], lanes);
            sums += value;
            store(&own[v], exponential(value - top), lanes);
            powers += load(&own[v], lanes);
        });
        float log = top + logf(sum(powers));
        all.logs[row] = log;
        all.losses[row] = log - (1.0f - all.smoothing) * target - all.smoothing * (sum(sums) / all.words);
        all.likelier[row] = likelier;
    }
}

template <typename T> static void compare_back(const Scores &all, const ScoresAbove &above) {
#pragma omp parallel for
    for (Int row = 0; row < all.rows; row++) {
        const T *logits = (const T *)all.logits + row * all.words;
        T *out = (T *)above.logits + row * all.words;
        float gradient = above.losses[row], log = all.logs[row], share = all.smoothing / all.words;
        strips(all.words, [&](Int v, auto lanes) {
            store(out + v, (exponential(load(logits + v, lanes) - log) - share) * gradient, lanes);
        });
        T *place = out + all.targets[row];
        const T *target = logits + all.targets[row];
        Part one{1};
        Floats likely = exponential(load(target, one) - log) - share - (1.0f - all.smoothing);
        store(place, likely * gradient, one);
    }
}

#define FOR_BOTH(NAME, T)                                                                                      \
    void attend_##NAME(const Attention *all, const Words *words) { attend<T>(*all, *words); }                     \
    void attend_back_##NAME(const Attention *all, const Words *words, const Above *above) {                       \
        attend_back<T>(*all, *words, *above);                                                                     \
    }                                                                                                             \
    void remember_##NAME(const Cells *step, const Sum *sum) { remember<T>(*step, *sum); }                         \
    void remember_back_##NAME(const Cells *step, const CellsAbove *above) { remember_back<T>(*step, *above); }    \
    void moments_##NAME(const Moments *all) { moments<T>(*all); }                                                 \
    void shift_keys_##NAME(const Keys *all) { shift_keys<T>(*all); }                                              \
    void shift_keys_back_##NAME(const Keys *all, const KeysAbove *above) { shift_keys_back<T>(*all, *above); }    \
    void compare_##NAME(const Scores *all) { compare<T>(*all); }                                                  \
    void compare_back_##NAME(const Scores *all, const ScoresAbove *above) { compare_back<T>(*all, *above); }

extern "C" {
FOR_BOTH(float32, float)
FOR_BOTH(bfloat16, Bfloat16)
}
