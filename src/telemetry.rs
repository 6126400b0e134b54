//! telemetry (Being written.)
