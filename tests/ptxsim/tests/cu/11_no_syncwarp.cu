// launch: grid 1, block 64, n 64; finds: Race
extern "C" __global__ void kernel(const float* in, float* out, int n) {
  __shared__ float tile[64];
  const int i = threadIdx.x;
  tile[i] = in[i];
#ifndef BUG  // right by luck on a warp in lock step
  __syncwarp();
#endif
  out[i] = tile[i ^ 1];  // FOUND
}
