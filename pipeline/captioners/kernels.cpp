// The loops between the products of an attention decoder, for CPUs, as functions of C. A row is a caption; the
// captions of an image are served together, so that its keys and features are read once a word, and finished ones are
// left out.
//
// Owns loops only: the Python files beside say what each function computes, and check what it is given.
// B images, R regions, N cells of the features, A attention size, C channels, H hidden size, n unfinished captions.

#include "attend.hpp"
#include "compare.hpp"
#include "nonzero.hpp"
#include "remember.hpp"
#include "share.hpp"

#define FOR_BOTH(NAME, T)                                                                                      \
    void attend_##NAME(const Attention *all, const Words *words) { attend<T>(*all, *words); }                     \
    void attend_back_##NAME(const Attention *all, const Words *words, const Above *above) {                       \
        attend_back<T>(*all, *words, *above);                                                                     \
    }                                                                                                             \
    void remember_##NAME(const Cells *step, const Sum *sum) { remember<T>(*step, *sum); }                         \
    void remember_back_##NAME(const Cells *step, const CellsAbove *above) { remember_back<T>(*step, *above); }    \
    void collect_nonzero_##NAME(const Nonzero *all) { collect_nonzero<T>(*all); }                                 \
    void moments_##NAME(const Moments *all) { moments<T>(*all); }                                                 \
    void shift_keys_##NAME(const Keys *all) { shift_keys<T>(*all); }                                              \
    void shift_keys_back_##NAME(const Keys *all, const KeysAbove *above) { shift_keys_back<T>(*all, *above); }    \
    void compare_##NAME(const Scores *all) { compare<T>(*all); }                                                  \
    void compare_back_##NAME(const Scores *all, const ScoresAbove *above) { compare_back<T>(*all, *above); }

extern "C" {
FOR_BOTH(float32, float)
FOR_BOTH(bfloat16, Bfloat16)
void multiply_nonzero_float32(const Nonzero *all, const Products *own) { multiply_nonzero(*all, *own); }
void multiply_nonzero_back_float32(const Nonzero *all, const Products *above) { multiply_nonzero_back(*all, *above); }
}
