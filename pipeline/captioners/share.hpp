// What is made of an image once, the moments of its regions and its keys: projection.py says what is computed.
#pragma once

#include <vector>

#include "lanes.hpp"

struct Moments {
    Int images, regions, cells, channels;
    const void *features;   // (B, N, C)
    const float *pooling;   // (R, N), or null where regions are cells
    float *mean, *variance;  // (B, R) each, filled
};

template <typename T>
static void region(const T *features, const float *pooling, Int r, const Moments &all, float *out) {
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
