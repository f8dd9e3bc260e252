//! Instructions at work: a group of instructions a file.

mod access;
mod atomic;
mod barrier;
mod bulk;
mod collective;
mod copy;
mod matrix;
mod step;
mod tensor;
mod warpgroup;
