// Cross-entropy of words and its gradient: scores.py says what is computed.
#pragma once

#include <vector>

#include "lanes.hpp"

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
