// The step of an LSTM, forward and backward: lstm.py says what is computed.
#pragma once

#include "lanes.hpp"

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
