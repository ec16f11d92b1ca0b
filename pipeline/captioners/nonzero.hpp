// What of an image's features is not zero, and what needs no more than that: nonzero.py says what is computed.
#pragma once

#include <vector>

#include "lanes.hpp"

struct Nonzero {
    Int images, cells, channels, room;
    const void *features;  // (B, N, C)
    int32_t *starts;       // (B, C + 1): a channel's values are those from starts[c] to starts[c + 1]
    uint16_t *places;      // (B, room), the cells they are in, ascending
    float *values;         // (B, room)

    const int32_t *image(Int b) const { return starts + b * (channels + 1); }
    bool holds(Int b) const { return image(b)[channels] <= room; }  // an image of more values is left out
};

static inline unsigned nonzero_lanes(Floats values) {  // a bit for each
#if defined(__AVX512F__)
    return __builtin_ia32_cmpps512_mask(values, Floats{}, 4, -1, 4);  // not equal, NaN among it
#elif defined(__AVX__)
    return __builtin_ia32_movmskps256((Floats)(values != 0.0f));
#else
    unsigned bits = 0;
    for (int lane = 0; lane < LANES; lane++) bits |= (unsigned)(values[lane] != 0.0f) << lane;
    return bits;
#endif
}

struct Value {
    float value;
    int32_t channel;
};

template <typename T> static void collect_image(const Nonzero &all, Int b, Value *found, int32_t *ends) {
    int32_t *starts = all.starts + b * (all.channels + 1);
    memset(starts, 0, (all.channels + 1) * sizeof(int32_t));
    Int count = 0;
    for (Int n = 0; n < all.cells; n++) {
        const T *cell = (const T *)all.features + (b * all.cells + n) * all.channels;
        strips(all.channels, [&](Int c, auto lanes) {
            Floats values = load(cell + c, lanes);
            for (unsigned left = nonzero_lanes(values); left; left &= left - 1) {
                int lane = __builtin_ctz(left);
                starts[c + lane + 1]++;
                if (count < all.room) found[count] = {values[lane], (int32_t)(c + lane)};
                count++;
            }
        });
        ends[n] = (int32_t)count;
        if (count > all.room) {
            starts[all.channels] = (int32_t)count;
            return;
        }
    }
    for (Int c = 0; c < all.channels; c++) starts[c + 1] += starts[c];
}

template <typename T> static void collect_nonzero(const Nonzero &all) {
#pragma omp parallel
    {
        std::vector<Value> found(all.room);
        std::vector<int32_t> ends(all.cells), next(all.channels);
#pragma omp for schedule(dynamic)
        for (Int b = 0; b < all.images; b++) {
            collect_image<T>(all, b, found.data(), ends.data());
            if (!all.holds(b)) continue;
            memcpy(next.data(), all.image(b), all.channels * sizeof(int32_t));
            Int i = 0;
            for (Int n = 0; n < all.cells; n++)
                for (; i < ends[n]; i++) {
                    Int at = b * all.room + next[found[i].channel]++;
                    all.places[at] = (uint16_t)n;
                    all.values[at] = found[i].value;
                }
        }
    }
}

typedef float Captions __attribute__((vector_size(32)));  // a value for each of up to eight captions

template <int K>
APART static void weigh_nonzero(const Nonzero &all, Int b, const float *weights, float *out) {
    std::vector<Captions> shares(all.cells);
    for (Int n = 0; n < all.cells; n++) {
        Captions own = {};
        for (int k = 0; k < K; k++) own[k] = weights[k * all.cells + n];
        shares[n] = own;
    }
    const int32_t *starts = all.image(b);
    const uint16_t *places = all.places + b * all.room;
    const float *values = all.values + b * all.room;
    for (Int c = 0; c < all.channels; c++) {
        Captions total = {};
        for (int32_t i = starts[c]; i < starts[c + 1]; i++) total += shares[places[i]] * values[i];
        for (int k = 0; k < K; k++) out[k * all.channels + c] = total[k];
    }
}

template <int K>
APART static void weigh_nonzero_back(const Nonzero &all, Int b, const float *above, float *to_weights) {
    std::vector<Captions> sums(all.cells);
    const int32_t *starts = all.image(b);
    const uint16_t *places = all.places + b * all.room;
    const float *values = all.values + b * all.room;
    for (Int c = 0; c < all.channels; c++) {
        Captions gradient = {};
        for (int k = 0; k < K; k++) gradient[k] = above[k * all.channels + c];
        for (int32_t i = starts[c]; i < starts[c + 1]; i++) sums[places[i]] += gradient * values[i];
    }
    for (Int n = 0; n < all.cells; n++)
        for (int k = 0; k < K; k++) to_weights[k * all.cells + n] = sums[n][k];
}

struct Products {  // products = features x weights, zeros for images left out; going back, the gradients of both
    Int size;
    float *weights;   // (C, A)
    float *products;  // (B, N, A)
};

// Columns are taken a block at a time into a buffer without gaps: rows of a large matrix, some thousand bytes apart,
// push one another out of the cache.
enum { ABREAST = 8, COLUMNS = ABREAST * LANES, CHANNELS = 512 };

static inline Int width_of(Int first, Int size) { return size - first < COLUMNS ? size - first : (Int)COLUMNS; }
static inline void take(float *to, const float *from, Int rows, Int stride, Int width) {
    for (Int row = 0; row < rows; row++) {
        memcpy(to + row * COLUMNS, from + row * stride, width * sizeof(float));
        memset(to + row * COLUMNS + width, 0, (COLUMNS - width) * sizeof(float));
    }
}
static inline void give(float *to, const float *from, Int rows, Int stride, Int width) {
    for (Int row = 0; row < rows; row++) memcpy(to + row * stride, from + row * COLUMNS, width * sizeof(float));
}

APART static void multiply_block(const Nonzero &all, Int b, const float *weights, float *products) {
    const int32_t *starts = all.image(b);
    const uint16_t *places = all.places + b * all.room;
    const float *values = all.values + b * all.room;
    for (Int c = 0; c < all.channels; c++) {
        Floats own[ABREAST];
        for (int j = 0; j < ABREAST; j++) own[j] = load(weights + c * COLUMNS + j * LANES, Whole());
        for (int32_t i = starts[c]; i < starts[c + 1]; i++) {
            float *row = products + places[i] * COLUMNS;
            for (int j = 0; j < ABREAST; j++)
                store(row + j * LANES, load(row + j * LANES, Whole()) + own[j] * values[i], Whole());
        }
    }
}

static void multiply_nonzero(const Nonzero &all, const Products &own) {
    Int blocks = (own.size + COLUMNS - 1) / COLUMNS;
    std::vector<float> weights(blocks * all.channels * COLUMNS);
#pragma omp parallel
    {
        std::vector<float> products(all.cells * COLUMNS);
#pragma omp for
        for (Int block = 0; block < blocks; block++) {
            Int first = block * COLUMNS;
            take(&weights[first * all.channels], own.weights + first, all.channels, own.size,
                 width_of(first, own.size));
        }
#pragma omp for collapse(2) schedule(dynamic)
        for (Int block = 0; block < blocks; block++)
            for (Int b = 0; b < all.images; b++) {
                Int first = block * COLUMNS;
                std::fill(products.begin(), products.end(), 0.0f);
                if (all.holds(b)) multiply_block(all, b, &weights[first * all.channels], products.data());
                give(own.products + b * all.cells * own.size + first, products.data(), all.cells, own.size,
                     width_of(first, own.size));
            }
    }
}

APART static void multiply_block_back(const Nonzero &all, Int b, Int from, Int until, const float *products,
                                      float *weights) {
    const int32_t *starts = all.image(b);
    const uint16_t *places = all.places + b * all.room;
    const float *values = all.values + b * all.room;
    for (Int c = from; c < until; c++) {
        float *out = weights + (c - from) * COLUMNS;
        Floats sums[ABREAST];
        for (int j = 0; j < ABREAST; j++) sums[j] = load(out + j * LANES, Whole());
        for (int32_t i = starts[c]; i < starts[c + 1]; i++) {
            const float *row = products + places[i] * COLUMNS;
            for (int j = 0; j < ABREAST; j++) sums[j] += load(row + j * LANES, Whole()) * values[i];
        }
        for (int j = 0; j < ABREAST; j++) store(out + j * LANES, sums[j], Whole());
    }
}

static void multiply_nonzero_back(const Nonzero &all, const Products &above) {
    Int blocks = (above.size + COLUMNS - 1) / COLUMNS, parts = (all.channels + CHANNELS - 1) / CHANNELS;
#pragma omp parallel
    {
        std::vector<float> products(all.cells * COLUMNS), weights(CHANNELS * COLUMNS);
#pragma omp for collapse(2) schedule(dynamic)  // a weight's sum is one thread's, image by image: the same for any number
        for (Int block = 0; block < blocks; block++)
            for (Int part = 0; part < parts; part++) {
                Int first = block * COLUMNS, width = width_of(first, above.size), from = part * CHANNELS;
                Int until = all.channels - from < CHANNELS ? all.channels : from + CHANNELS;
                std::fill(weights.begin(), weights.end(), 0.0f);
                for (Int b = 0; b < all.images; b++) {
                    if (!all.holds(b)) continue;
                    take(products.data(), above.products + b * all.cells * above.size + first, all.cells, above.size,
                         width);
                    multiply_block_back(all, b, from, until, products.data(), weights.data());
                }
                give(above.weights + from * above.size + first, weights.data(), until - from, above.size, width);
            }
    }
}
