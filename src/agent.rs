//! The agent: the supervisor beside the app. (Being written.)

pub mod spec;
