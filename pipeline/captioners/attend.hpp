// Attention over what the captions of an image share, forward and backward: attention.py says what is computed.
#pragma once

#include <vector>

#include "lanes.hpp"
#include "nonzero.hpp"

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
    const Nonzero *nonzero;       // of the features, or null: not collected
};

struct Words {  // a word of n captions
    Int rows, parts_stride;
    const Int *starts, *members;  // members[starts[b] .. starts[b + 1]], ascending: the captions of image b
    void *parts;                  // (n, P): queries, then the gate, which is replaced by its sigmoid
    const float *query_bias, *gate_bias;  // gate_bias null: no gate
    float *weights;                       // (n, R)
    void *context;                        // (n, C)
    float *total;                         // (n,), the log of the sum of e^energy, or null: not asked for
};

struct Above {  // gradients: of a word's context and weights, then of its queries, gate, keys and score
    Int parts_stride;
    const void *context, *through;  // (n, C) each, summed
    const float *weights;           // (n, R)
    void *parts;                    // (n, P')
    float *keys;                    // (B, R, A), added to; still without the score
    float *score;                   // (B, A), added to
    const float *total;             // (n,), of the word's total, or null
};

template <typename F, int K>
APART static void energies(const typename F::Key *keys, const float *queries, const float *score, float *out,
                           Int regions, Int size) {
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
APART static void energies_back(const typename F::Key *keys, const float *queries, const float *above,
                                float *to_keys, float *to_queries, float *to_score, Int regions, Int size) {
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

static float softmax(float *values, Int count) {  // returns the log of the sum
    float top = values[0];
    for (Int i = 1; i < count; i++) top = values[i] > top ? values[i] : top;
    Floats totals = {};
    strips(count, [&](Int i, auto lanes) {
        Floats value = exponential(load(values + i, lanes) - top);
        store(values + i, value, lanes);
        totals += load(values + i, lanes);
    });
    float total = sum(totals), share = 1.0f / total;
    for (Int i = 0; i < count; i++) values[i] *= share;
    return top + std::log(total);
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
    bool sparse() const { return all.nonzero && all.nonzero->holds(b); }
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
            float total = softmax(own, all.regions);
            if (words.total) words.total[rows[k]] = total;
            memcpy(words.weights + rows[k] * all.regions, own, all.regions * sizeof(float));
            if (all.scale)
                for (Int r = 0; r < all.regions; r++) {
                    shifts[k] += own[r] * all.shift[b * all.regions + r];
                    own[r] *= all.scale[b * all.regions + r];
                }
            pool(own, &cells[k * all.cells]);
        }
        if (sparse())
            weigh_nonzero<K>(*all.nonzero, b, cells.data(), contexts.data());
        else
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
        if (sparse())
            weigh_nonzero_back<K>(*all.nonzero, b, contexts.data(), cells.data());
        else
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
        float mean = above.total ? -above.total[rows[k]] : 0;
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
