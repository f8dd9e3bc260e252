// What a product is written as where it may be f32 although activations are not (-DWIDE=1: logits).
#pragma once
#include "types.cuh"

#ifndef WIDE
#define WIDE 0
#endif
#if WIDE
typedef float Out;
#else
typedef act Out;
#endif
