//! cli (Being written.)
