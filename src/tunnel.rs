//! tunnel (Being written.)
