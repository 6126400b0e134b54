//! client (Being written.)
