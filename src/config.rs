//! config (Being written.)
