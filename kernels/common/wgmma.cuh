// wgmma: products of a warpgroup, bf16 operands in shared memory, sums in f32 in registers.
//
// Rows of tiles in shared memory are 128 bytes, 64 elements, their 16-byte pieces exclusive-ored with the row, as tensor copies
// and wgmma both do it (the 128-byte swizzle). A tile whose rows run along k is K-major: 8 rows are 1024 bytes. Else it is MN-major:
// blocks of 64 columns, one after the other, each as many rows as the tile has along k.
#pragma once
#include "hopper.cuh"

// Where a 16-byte piece of a row of 128 bytes is in a tile.
__device__ __forceinline__ u32 swizzled(u32 row, u32 piece) { return row * 128 + (piece ^ row % 8) * 16; }

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// The descriptor of a matrix of such a tile that begins at `at`: the bytes from 64 columns to the next where it is
// MN-major (else without meaning), 1024 from 8 rows to the next, the 128-byte swizzle.
__device__ __forceinline__ u64 descriptor(u32 at, u32 leading) {
    return (u64)((at & 0x3ffff) >> 4) | (u64)(leading >> 4) << 16 | (u64)(1024 >> 4) << 32 | 1ull << 62;
}
// Of 16 of k, from k on, of a tile that has DEPTH of it.
template <bool ALONG_K, int DEPTH> __device__ __forceinline__ u64 descriptor_at(u32 tile, u32 k) {
    return ALONG_K ? descriptor(tile + 2 * k, 16) : descriptor(tile + 128 * k, 128 * DEPTH);
}

// A product of 64 rows, N columns and 16 of k. Thread t of a warpgroup has sums 4j and 4j + 1 of row t / 32 * 16 + t % 32 / 4, columns
// 8j + t % 4 * 2 and the next, and 4j + 2 and 4j + 3 of the row 8 below.
template <int N> struct Wgmma;

#define SUMS4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SUMS16(i) SUMS4(i), SUMS4(i + 4), SUMS4(i + 8), SUMS4(i + 12)
#define SUMS32(i) SUMS16(i), SUMS16(i + 16)
#define SUMS64(i) SUMS32(i), SUMS32(i + 32)
#define SUMS128(i) SUMS64(i), SUMS64(i + 64)
#define SUMS_0_31 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define SUMS_0_63 \
    SUMS_0_31 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define SUMS_0_127 \
    SUMS_0_63 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// `shared`: d += a · b, or d = a · b without ADD. `fragments`: the same where a is in registers, as the fragments of mma.m16n8k16 that
// the warps have of their 16 rows. x0 and so on are the numbers of the operands after the sums.
#define WGMMA(N, LIST, SUMS, x0, x1, x2, x3, x4, x5, x6)                                                                   \
    template <> struct Wgmma<N> {                                                                                          \
        typedef float Sums[N / 2];                                                                                         \
        template <bool ADD, bool A_ALONG_K, bool B_ALONG_K>                                                                \
        static __device__ __forceinline__ void shared(Sums& d, u64 a, u64 b) {                                             \
            asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" LIST "}, "                           \
                         "%" #x0 ", %" #x1 ", %" #x2 ", 1, 1, %" #x3 ", %" #x4 ";"                                         \
                         : SUMS(0)                                                                                         \
                         : "l"(a), "l"(b), "n"((int)ADD), "n"((int)!A_ALONG_K), "n"((int)!B_ALONG_K));                     \
        }                                                                                                                  \
        template <bool ADD, bool B_ALONG_K>                                                                                \
        static __device__ __forceinline__ void fragments(Sums& d, const u32 (&a)[4], u64 b) {                              \
            asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" LIST "}, "                           \
                         "{%" #x0 ", %" #x1 ", %" #x2 ", %" #x3 "}, %" #x4 ", %" #x5 ", 1, 1, %" #x6 ";"                   \
                         : SUMS(0)                                                                                         \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"((int)ADD), "n"((int)!B_ALONG_K));       \
        }                                                                                                                  \
    };
WGMMA(64, SUMS_0_31, SUMS32, 32, 33, 34, 35, 36, 37, 38)
WGMMA(128, SUMS_0_63, SUMS64, 64, 65, 66, 67, 68, 69, 70)
WGMMA(256, SUMS_0_127, SUMS128, 128, 129, 130, 131, 132, 133, 134)
