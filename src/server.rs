//! server (Being written.)
