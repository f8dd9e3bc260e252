// A launch of several problems (src/plan/batch.rs): a kernel has the pointers of each, then the words of each, and then how many
// blocks each but the last has. The rest are the last one's.
#pragma once
#include "types.cuh"

// What a macro makes of the problems' numbers: THREE(POINTERS) declares the pointers of three.
#define THREE(f) f(0), f(1), f(2)
#define SIX(f) THREE(f), f(3), f(4), f(5)

// The problem of a number. Selected field by field: an array that is indexed would be in memory.
template <class P> __device__ __forceinline__ P nth(u32, const P& only) { return only; }
template <class P, class... R> __device__ __forceinline__ P nth(u32 number, const P& first, const R&... others) {
    return number == 0 ? first : nth(number - 1, others...);
}

// The problem that the block of a number is of, and its number among the problem's blocks.
struct Turn {
    u32 problem, block;
    template <class... P> __device__ __forceinline__ auto pick(const P&... problems) const {
        return nth(problem, problems...);
    }
};
template <class... N> __device__ __forceinline__ Turn turn(u32 number, N... blocks) {
    const u32 counts[] = {blocks...};
    Turn t = {0, number};
#pragma unroll
    for (int i = 0; i < sizeof...(N); i++) {
        if (t.problem == i && t.block >= counts[i]) t.problem++, t.block -= counts[i];
    }
    return t;
}
