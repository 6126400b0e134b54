//! api (Being written.)
