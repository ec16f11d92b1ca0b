// Vectors as wide as the machine's, by the compiler's own extension; loads, stores and the functions the loops need.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

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
