//! gpus (Being written.)
